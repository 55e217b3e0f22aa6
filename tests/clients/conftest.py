"""Fixtures for tests of vendors' clients against a running service. Only `make clients` runs these tests."""

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
    collect_ignore_glob = ["test_*.py"]  # these tests need the vendors' packages


@pytest.fixture(autouse=True)
def _told(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Adds the client and the dialect to the report."""
    mark = request.node.get_closest_marker("client")
    client, dialect = mark.args
    record_property("client", client)
    record_property("dialect", dialect)


@pytest.fixture
def url() -> str:
    """Address of the service."""
    return os.environ["RERANK_CLIENTS_URL"]


@pytest.fixture(scope="session")
def logits() -> Sequence[float]:
    """Logits of `TEXTS` from the service's own API, in their order."""
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS]}
    address = f"{os.environ['RERANK_CLIENTS_URL']}/v1/ranking"
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)  # noqa: S310 - our own address
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        rankings = json.load(answer)["rankings"]
    return [ranking["logit"] for ranking in sorted(rankings, key=lambda ranking: ranking["index"])]


@pytest.fixture
def query() -> str:
    """The query."""
    return QUERY


@pytest.fixture
def texts() -> list[str]:
    """The passages to rank; their order by relevance is 1, 2, 0."""
    return list(TEXTS)


@pytest.fixture
def model() -> str:
    """Name of a served model."""
    return MODEL
