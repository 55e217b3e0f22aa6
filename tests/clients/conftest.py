"""Fixtures for tests of vendors' clients against a running service. Only `make clients` runs these tests."""

import json
import math
import os
import socket
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import pytest

MODEL = "all-MiniLM-L6-v2"
QUERY = "What is the capital of France?"
TEXTS = (
    "A croissant is a buttery pastry.",
    "Paris is the capital and largest city of France.",
    "Berlin is the capital of Germany.",
)
TOLERANCE = 1e-3
"""Largest difference between two scores of a pair: in int8, the other pairs of a batch may change a logit slightly."""

if "RERANK_CLIENTS_URL" not in os.environ:
    collect_ignore_glob = ["test_*.py"]  # these tests need the vendors' packages


@pytest.fixture(autouse=True)
def _told(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Adds the client and the dialect to the report."""
    mark = request.node.get_closest_marker("client")
    client, dialect = mark.args
    record_property("client", client)
    record_property("dialect", dialect)


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses to resolve other hosts' names. LiteLLM, for example, reads each model's window from huggingface.co."""
    resolve = socket.getaddrinfo

    def resolve_loopback(host: Any, *args: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", b"127.0.0.1", "localhost"):
            raise socket.gaierror(socket.EAI_FAIL, f"the tests of clients do not resolve {host!r}")
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_loopback)


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
def probabilities(logits: Sequence[float]) -> list[float]:
    """Scores of `TEXTS` in the APIs whose scores are probabilities, in the order of the texts."""
    return [1 / (1 + math.exp(-logit)) for logit in logits]


@pytest.fixture
def best_first(probabilities: list[float]) -> list[tuple[str, Any]]:
    """`TEXTS` with their probabilities, best first, to compare with the answers of a client."""
    return [(TEXTS[index], pytest.approx(probabilities[index], abs=TOLERANCE)) for index in (1, 2, 0)]


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
