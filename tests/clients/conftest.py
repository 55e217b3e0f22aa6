"""A running service, and which client speaks which dialect. The tests here run by `make clients` only."""

import json
import os
import urllib.request
from collections.abc import Callable, Sequence

import pytest

MODEL = "all-MiniLM-L6-v2"
QUERY = "What is the capital of France?"
TEXTS = (
    "A croissant is a buttery pastry.",
    "Paris is the capital and largest city of France.",
    "Berlin is the capital of Germany.",
)

if "RERANK_CLIENTS_URL" not in os.environ:
    collect_ignore_glob = ["test_*.py"]  # they need the vendors' packages


@pytest.fixture(autouse=True)
def _told(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Tells the report."""
    mark = request.node.get_closest_marker("client")
    client, dialect = mark.args
    record_property("client", client)
    record_property("dialect", dialect)


@pytest.fixture
def url() -> str:
    """Where the service is."""
    return os.environ["RERANK_CLIENTS_URL"]


@pytest.fixture(scope="session")
def logits() -> Sequence[float]:
    """What our own API says of `TEXTS`, in their order."""
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS]}
    address = f"{os.environ['RERANK_CLIENTS_URL']}/v1/ranking"
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)  # noqa: S310 - our own address
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        rankings = json.load(answer)["rankings"]
    return [ranking["logit"] for ranking in sorted(rankings, key=lambda ranking: ranking["index"])]


@pytest.fixture
def query() -> str:
    """What is asked."""
    return QUERY


@pytest.fixture
def texts() -> list[str]:
    """What is ranked; by relevance 1, 2, 0."""
    return list(TEXTS)


@pytest.fixture
def model() -> str:
    """A name the service knows."""
    return MODEL
