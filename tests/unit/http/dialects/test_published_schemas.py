"""Requests that vendors' published schemas allow are accepted, and answers and errors satisfy those schemas.

`tests/compatibility/published` has a file for each vendor, with the source and version of its schemas. If several APIs
share a body, the answer satisfies all of them.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from jsonschema import Draft202012Validator

from rerank_service.config import ModelConfig
from rerank_service.messages import Shard, ShardScores
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import local_model

FOLDER = Path(__file__).parents[3] / "compatibility" / "published"
VENDORS = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.yaml"))]
OPERATIONS: Mapping[str, Any] = {name: one for vendor in VENDORS for name, one in vendor["operations"].items()}
ROUTES = [
    (route, status, schema)
    for vendor in VENDORS
    for route, answers in vendor.get("routes", {}).items()
    for status, schema in answers.items()
]

TEXTS = ["a", "b", "c"]
OBJECTS = [{"text": "a", "id": 1}, {"text": "b"}, {"text": "c"}]
PARTS: list[Any] = [{"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "c"]
SHARED: dict[str, Any] = {"model": "m", "query": "q", "documents": TEXTS}

BODIES: dict[str, dict[str, Any]] = {
    "Cohere v1": SHARED | {"max_chunks_per_doc": 1},
    "Cohere v2": SHARED,
    "text-embeddings-inference": {"query": "q", "texts": TEXTS},
    "Infinity": SHARED | {"raw_scores": False},
    "Jina": SHARED,
    "vLLM rerank": SHARED,
    "vLLM score": {"text_1": "q", "text_2": TEXTS},
    "Voyage": SHARED | {"truncation": True},
    "Xinference": SHARED | {"kwargs": "{}", "return_len": None, "max_chunks_per_doc": None},
}
"""For each operation, a body that selects the vendor's API."""

FIELDS: dict[str, Sequence[Any]] = {
    "top_n": (1, 3, 100, None),
    "top_k": (1, 3, 100, None),
    "return_documents": (True, False, None),
    "return_text": (True, False),
    "raw_scores": (True, False),
    "truncate": (True, False, None),
    "truncation_direction": ("Left", "Right"),
    "truncation": (True, False, None),
    "rank_fields": (["text"],),
    "max_chunks_per_doc": (1, 10, None),
    "max_tokens_per_doc": (1, 4096),
    "max_doc_length": (1, 2048),
    "return_embeddings": (False, None),
    "priority": (0, 999),
    "truncate_prompt_tokens": (-1, 1, 100, None),
    "truncation_side": ("left", "right", None),
    "padding": ("max_length", "do_not_pad", None),
    "request_id": ("r1",),
    "user": ("u1", None),
    "mm_processor_kwargs": (None,),
    "cache_salt": ("salt", None),
    "use_activation": (True, False, None),
    "max_tokens_per_query": (0,),
    "model": ("m", None),
    "return_len": (True, False, None),
    "kwargs": ("{}", None),
    "documents": (TEXTS, OBJECTS, PARTS, PARTS[0], "a"),
    "texts": (TEXTS,),
    "text_1": ("q", ["q", "r", "s"]),
    "text_2": (TEXTS, "a", PARTS),
}
"""Values for each optional field. A value is sent where the vendor's schema allows it."""
REFUSED: Sequence[tuple[str, str, Any]] = [("vLLM rerank", "priority", 999), ("vLLM score", "priority", 999)]
"""What `docs/dialects.md` lists as not supported."""

IGNORED: Mapping[str, set[str]] = {
    "Jina": {"return_embeddings"},
    "vLLM rerank": {"user", "padding", "request_id", "cache_salt"},
    "vLLM score": {"user", "padding", "request_id", "cache_salt"},
    "Xinference": {"return_len", "kwargs"},
}
"""Fields of the vendors that have no effect here, which the header `x-ignored-fields` says."""


def requests() -> list[tuple[str, dict[str, Any]]]:
    """A body with each allowed value of each field of each operation."""
    bodies = []
    for name, operation in OPERATIONS.items():
        is_valid = Draft202012Validator(operation["request"]).is_valid
        for field in operation["request"]["properties"].keys() & FIELDS.keys():
            bodies += [
                (name, BODIES[name] | {field: value})
                for value in FIELDS[field]
                if is_valid(BODIES[name] | {field: value}) and (name, field, value) not in REFUSED
            ]
    return bodies


@pytest.fixture
def model(checkpoints: dict[str, Path]) -> ModelConfig:
    return local_model(checkpoints["llama_bidirec"]).model_copy(update={"id": "m"})


@pytest.fixture
async def client(model: ModelConfig) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(local_api([model], {"m": LocalReplica(model)})) as c:
        yield c


def test_every_field_of_every_request_is_tried() -> None:
    tried = {(name, field) for name, body in requests() for field in body}
    untried = {
        (name, field)
        for name, operation in OPERATIONS.items()
        for field in operation["request"]["properties"]
        if (name, field) not in tried
    }
    forms = ("queries", "items", "data_1", "data_2")  # as `text_1` and `text_2`
    assert untried == {("vLLM score", field) for field in forms}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_every_request_is_accepted_and_its_answer_satisfies_the_vendors_schema(
    client: httpx.AsyncClient, name: str
) -> None:
    ignored = set[str]()
    for body in (body for operation, body in requests() if operation == name):
        answer = await client.post(OPERATIONS[name]["path"], json=body)

        assert answer.status_code == 200, (body, answer.text)
        check(answer.json(), name, body)
        ignored.update(answer.headers.get("x-ignored-fields", "").split(", "))
    assert ignored - {""} == IGNORED.get(name, set())


MISTAKES: dict[str, dict[str, Any]] = {
    "a query of the wrong type": {"query": 5, "text_1": 5},
    "a blank query": {"query": " ", "text_1": " "},
    "no text": {"documents": [], "texts": [], "text_2": []},
    "too many texts": {"documents": ["a"] * 9, "texts": ["a"] * 9, "text_2": ["a"] * 9},
    "a number as text": {"documents": ["a", 5], "texts": ["a", 5], "text_2": ["a", 5]},
    "an unknown model": {"model": "nope"},
    "top_n below 0": {"top_n": -1, "top_k": -1},
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_errors_satisfy_the_vendors_schema(
    model: ModelConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation, body = OPERATIONS[name], BODIES[name]
    schema = Draft202012Validator(operation["error"])
    statuses = operation.get("statuses", range(400, 500))
    async with client_of(local_api([model], {"m": LocalReplica(model)}, limits={"max_documents": 8})) as client:
        for mistake, changes in MISTAKES.items():
            fields = operation["request"]["properties"]
            spoilt = body | {field: value for field, value in changes.items() if field in fields}
            if spoilt == body or (mistake == "an unknown model" and 404 not in statuses):
                continue
            answer = await client.post(operation["path"], json=spoilt)

            assert answer.status_code >= 400, (mistake, answer.text)
            assert answer.status_code in statuses, (mistake, answer.text)
            schema.validate(answer.json())


def check(answer: Any, name: str, body: Mapping[str, Any]) -> None:
    error = next(Draft202012Validator(OPERATIONS[name]["response"]).iter_errors(answer), None)
    assert error is None, (name, body, error.json_path, error.message)
    assert answer if isinstance(answer, list) else answer.get("results") or answer["data"]


ON_SHARED_PATHS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("/v1/rerank", SHARED, ["Jina", "Cohere v1", "Voyage", "vLLM rerank", "Xinference"]),
    ("/v1/rerank", SHARED | {"return_documents": False}, ["Jina", "Cohere v1", "Voyage", "Xinference"]),
    ("/v1/rerank", SHARED | {"top_n": 2, "return_documents": True}, ["Jina", "Cohere v1", "vLLM rerank", "Xinference"]),
    ("/v1/rerank", SHARED | {"max_chunks_per_doc": 2, "return_documents": True}, ["Cohere v1", "Xinference"]),
    ("/v1/rerank", SHARED | {"top_k": 2, "return_documents": True}, ["Voyage"]),
    ("/v1/rerank", SHARED | {"truncation": True}, ["Voyage", "Jina"]),
    ("/v1/rerank", SHARED | {"truncation": True, "top_n": 2}, ["Jina"]),
    ("/v2/rerank", SHARED, ["Cohere v2", "vLLM rerank"]),
    ("/v2/rerank", SHARED | {"top_n": 2, "return_documents": False}, ["Cohere v2"]),
    ("/rerank", SHARED, ["vLLM rerank", "Cohere v2"]),
    ("/rerank", SHARED | {"raw_scores": True, "return_documents": True}, ["Infinity"]),
    ("/rerank", BODIES["text-embeddings-inference"] | {"return_text": True}, ["text-embeddings-inference"]),
    ("/v1/rerank", BODIES["text-embeddings-inference"] | {"return_text": True}, ["text-embeddings-inference"]),
]


@pytest.mark.parametrize(("path", "body", "readers"), ON_SHARED_PATHS)
async def test_an_answer_satisfies_every_reader(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], readers: list[str]
) -> None:
    answer = await client.post(path, json=body)

    assert answer.status_code == 200, answer.text
    for reader in readers:
        check(answer.json(), reader, body)


@pytest.mark.parametrize(("route", "status", "schema"), ROUTES)
async def test_other_routes_satisfy_the_vendors_schema(
    model: ModelConfig, route: str, status: int, schema: Mapping[str, Any]
) -> None:
    gate, replica = asyncio.Event(), LocalReplica(model)

    class Late:
        def remote(self, shard: Shard) -> "asyncio.Task[ShardScores]":
            return asyncio.ensure_future(self.score(shard))

        async def score(self, shard: Shard) -> ShardScores:
            await gate.wait()
            return await replica.remote(shard)

    async with client_of(local_api([model], {"m": Late()})) as client:
        if status != 503:
            gate.set()
            while (await client.get("/v1/health/ready")).status_code == 503:
                await asyncio.sleep(0.01)
        answer = await client.get(route)

    assert answer.status_code == status
    Draft202012Validator(schema).validate(answer.json())
