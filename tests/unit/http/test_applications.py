"""Requests of applications that call rerankers, sent to the service as the applications send them.

`tests/compatibility/applications` has a file for each application. The requests, and the fields that the application
reads from the answers, are facts taken from its source. `refused_today` marks a request that the service does not
answer as the application needs; whoever changes that removes the mark. `works_with` has settings that make a marked
request work.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from jsonschema import Draft202012Validator

from rerank_service.config import ModelConfig
from rerank_service.engine import Engine, load_engine
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import local_model

FOLDER = Path(__file__).parents[2] / "compatibility" / "applications"
KEY = "sk-recorded"
"""The key in the recorded headers."""
ASKED_FOR = {
    *("AIPerf", "Cherry Studio", "Continue", "Dify", "Elasticsearch", "FastGPT", "Flowise", "Hindsight", "LibreChat"),
    *("LightRAG", "MaxKB", "NVIDIA RAG Blueprint", "Open WebUI", "R2R", "RAGFlow", "Stargate Data API", "WeKnora"),
    *("Weaviate", "kotaemon"),
    # in no list before 2026-11-26; tried with the packages themselves, as a new user would
    *("CAMEL", "DB-GPT", "LangChain.js", "LlamaIndex.TS", "Mem0", "MemOS", "NVIDIA Ingest", "Together SDK"),
}
WINDOW_TOKENS = 512
SCORES = ("relevance_score", "logit", "score")
TYPES: Mapping[str, type | tuple[type, ...]] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "object": dict,
    "string": str,
}

_READS = {"type": "object", "additionalProperties": {"enum": list(TYPES)}}
_CALL = {
    "headers": {"type": "object", "additionalProperties": {"type": "string"}},
    "reads": _READS,
    "reads_if_present": _READS,
    "without_them": {"type": "string"},
    "refused_today": {"type": "string"},
}
FORM = {
    "type": "object",
    "required": ["application", "source", "requests"],
    "properties": {
        "source": {
            "required": ["repository"],
            "anyOf": [{"required": ["version"]}, {"required": ["commit"]}],
            "properties": {"commit": {"pattern": "^[0-9a-f]{40}$"}},
        },
        "requests": {
            "items": {
                "required": ["provider", "file", "configured", "headers", "body", "reads"],
                "additionalProperties": False,
                "properties": _CALL
                | {
                    "provider": {"type": "string"},
                    "file": {"type": "string"},
                    "configured": {"type": "string", "format": "uri"},
                    "appended": {"type": "string"},
                    "address_is_fixed": {"const": True},
                    "body": {"type": "object"},
                    "largest_batch": {"type": "integer"},
                    "larger_batch_refused_today": {"type": "string"},
                    "long_text_refused_today": {"type": "string"},
                    "works_with": {"type": "object"},
                    "wants_errors": {"const": True},
                    "only": {"type": "object"},
                    "reads_from_errors": {"type": "array"},
                    "calls_first": {
                        "items": {
                            "required": ["path"],
                            "additionalProperties": False,
                            "properties": _CALL
                            | {"path": {"type": "string"}, "statuses": {"type": "array"}, "equals": {"type": "object"}},
                        },
                    },
                },
            },
        },
    },
}
"""Form of a file."""

Request = Mapping[str, Any]

FILES = sorted(FOLDER.glob("*.yaml"))
APPLICATIONS = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in FILES]
REQUESTS = [(one["application"], request) for one in APPLICATIONS for request in one["requests"]]
MODELS = {request["body"]["model"] for _, request in REQUESTS if "model" in request["body"]}


def cases(mark: str, entries: Sequence[tuple[str, Request]]) -> list[Any]:
    """Parameters with readable ids. An entry with the field `mark` is expected to fail."""
    parameters = []
    for name, entry in entries:
        reason = entry.get(mark)
        marks = [] if reason is None else [pytest.mark.xfail(strict=True, reason=reason, raises=AssertionError)]
        parameters.append(pytest.param(entry, id=name, marks=marks))
    return parameters


RANKINGS = [(f"{application}: {request['provider']}", request) for application, request in REQUESTS]
WORKING = [entry for entry in RANKINGS if "refused_today" not in entry[1]]
BATCHES = [entry for entry in RANKINGS if "largest_batch" in entry[1]]
WITH_SETTINGS = [entry for entry in RANKINGS if "works_with" in entry[1]]
FIRST_CALLS = [(f"{name}: {call['path']}", call) for name, entry in RANKINGS for call in entry.get("calls_first", ())]


@pytest.fixture(scope="module")
def model(checkpoints: dict[str, Path]) -> ModelConfig:
    """A model with all names that the requests contain."""
    llama = local_model(checkpoints["llama_bidirec"], window_tokens=WINDOW_TOKENS)
    return llama.model_copy(update={"id": "nvidia/bge-reranker", "aliases": tuple(sorted(MODELS - {llama.id}))})


@pytest.fixture(scope="module")
def engine(model: ModelConfig) -> Engine[Any]:
    return load_engine(model)


@pytest.fixture
async def client(
    request: pytest.FixtureRequest, model: ModelConfig, engine: Engine[Any], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """A service that requires the recorded key, if the entry has it."""
    entry = request.node.callspec.params["entry"]
    has_key = any(KEY in value for value in entry.get("headers", {}).values())
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", KEY if has_key else "")
    settings = entry["works_with"] if "settings" in request.node.name else {}
    async with client_of(local_api([model], {model.id: LocalReplica(model, engine)}, **settings)) as c:
        yield c


@pytest.mark.parametrize("application", APPLICATIONS, ids=[file.stem for file in FILES])
def test_a_file_has_the_form(application: Mapping[str, Any]) -> None:
    Draft202012Validator(FORM).validate(application)


def test_every_application_that_was_asked_for_is_recorded() -> None:
    assert {one["application"] for one in APPLICATIONS} == ASKED_FOR


@pytest.mark.parametrize("entry", cases("refused_today", RANKINGS))
async def test_an_application_can_rank(client: httpx.AsyncClient, entry: Request) -> None:
    answer = await send(client, entry, entry["body"])

    assert answer.status_code == 200, answer.text
    check_fields(answer.json(), entry)
    check_order(answer.json(), entry, await by_relevance(client, entry))


@pytest.mark.parametrize("entry", cases("larger_batch_refused_today", BATCHES))
async def test_an_application_can_rank_its_largest_batch(client: httpx.AsyncClient, entry: Request) -> None:
    field, texts = texts_of(entry)
    size = entry["largest_batch"]

    answer = await send(client, entry, entry["body"] | {field: (texts * size)[:size]})

    assert answer.status_code == 200, answer.text
    assert len(indices(answer.json(), entry)) == size


@pytest.mark.parametrize("entry", cases("long_text_refused_today", WORKING))
async def test_an_application_can_rank_a_text_that_is_too_long(client: httpx.AsyncClient, entry: Request) -> None:
    """One long text does not fail the others, unless the application itself asks for that."""
    field, texts = texts_of(entry)
    long = " ".join([text_of(texts[0])] * WINDOW_TOKENS)

    answer = await send(client, entry, entry["body"] | {field: [with_text(texts[0], long), *texts[1:]]})

    assert answer.status_code == (400 if entry.get("wants_errors") else 200), answer.text


@pytest.mark.parametrize("entry", cases("", WITH_SETTINGS))
async def test_settings_serve_an_application_that_the_defaults_refuse(
    client: httpx.AsyncClient, entry: Request
) -> None:
    field, texts = texts_of(entry)
    long = " ".join([text_of(texts[0])] * WINDOW_TOKENS)

    whole = await send(client, entry, entry["body"])
    cut = await send(client, entry, entry["body"] | {field: [with_text(texts[0], long), *texts[1:]]})

    assert [whole.status_code, cut.status_code] == [200, 200], cut.text
    check_fields(whole.json(), entry)
    check_order(whole.json(), entry, await by_relevance(client, entry))


@pytest.mark.parametrize("entry", cases("refused_today", FIRST_CALLS))
async def test_an_application_gets_what_it_asks_for_first(client: httpx.AsyncClient, entry: Request) -> None:
    answer = await client.get(entry["path"], headers=entry.get("headers"))

    assert answer.status_code in entry.get("statuses", [200]), answer.text
    if answer.status_code == 200:
        check_fields(answer.json(), entry)
        assert {path: values_at(answer.json(), path)[0] for path in entry.get("equals", {})} == entry.get("equals", {})


async def send(client: httpx.AsyncClient, entry: Request, body: Mapping[str, Any]) -> httpx.Response:
    """Sends the body to the path of the configured address, with what the application appends to the address."""
    path = urlsplit(entry["configured"]).path + entry.get("appended", "")
    return await client.post(path, content=json.dumps(body), headers=entry["headers"])


async def by_relevance(client: httpx.AsyncClient, entry: Request) -> list[int]:
    """The order of the request's texts in NVIDIA's API."""
    _, texts = texts_of(entry)
    query = {"text": text_of(entry["body"]["query"])}
    ranking = {"query": query, "passages": [{"text": text_of(text)} for text in texts]}
    answer = await client.post("/v1/ranking", json=ranking, headers={"authorization": f"Bearer {KEY}"})
    return [ranked["index"] for ranked in answer.json()["rankings"]]


def texts_of(entry: Request) -> tuple[str, list[Any]]:
    """Name and value of the field with the texts to rank."""
    return next((field, entry["body"][field]) for field in ("passages", "documents", "texts") if field in entry["body"])


def text_of(text: Any) -> str:
    """A text, from any of the forms in which applications send it."""
    if isinstance(text, str):
        return text
    return str(text["text"]) if "text" in text else "".join(part["text"] for part in text["content"])


def with_text(form: Any, text: str) -> Any:
    """Another text in the same form."""
    if isinstance(form, str):
        return text
    return {"text": text} if "text" in form else {"content": [{"type": "text", "text": text}]}


def check_fields(answer: Any, entry: Request) -> None:
    """Checks that the application finds each field that it reads, with the type that it expects."""
    for path, kind in entry.get("reads", {}).items():
        values = values_at(answer, path)
        assert values, f"no {path}"
        assert all(is_a(kind, value) for value in values), f"{path} is no {kind}: {values}"
    for path, kind in entry.get("reads_if_present", {}).items():
        values = [value for value in values_at(answer, path, tolerant=True) if value is not None]
        assert all(is_a(kind, value) for value in values), f"{path} is no {kind}: {values}"
    for path, fields in entry.get("only", {}).items():
        assert all(sorted(value) == sorted(fields) for value in values_at(answer, path))


def check_order(answer: Any, entry: Request, expected: list[int]) -> None:
    """Checks that the results are sorted by score, and that they are the best texts of the request."""
    (score,) = (path for path in entry["reads"] if path.rpartition(".")[2] in SCORES)
    scores = values_at(answer, score)
    limit = entry["body"].get("top_n") or entry["body"].get("top_k") or len(expected)

    assert scores == sorted(scores, reverse=True)
    assert len(scores) == min(limit, len(expected))
    assert indices(answer, entry) == expected[: len(scores)]


def indices(answer: Any, entry: Request) -> list[int]:
    """Indices of the results, in the order of the answer."""
    (score,) = (path for path in entry["reads"] if path.rpartition(".")[2] in SCORES)
    return values_at(answer, score.rpartition(".")[0] + ".index")


def is_a(kind: str, value: Any) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def values_at(answer: Any, path: str, *, tolerant: bool = False) -> list[Any]:
    """Values at a path such as `results[].document.text`. Fails where a field is missing; with `tolerant`, a missing
    field gives no value, but a text or a number in place of an object still fails."""
    values = [answer]
    for name, is_list in re.findall(r"([\w-]+)?(\[\])?(?:\.|$)", path):
        if name:
            assert all(isinstance(value, dict) for value in values), f"{path}: no object that could have {name}"
            assert tolerant or all(name in value for value in values), f"{path}: {name} is missing"
            values = [value[name] for value in values if name in value]
        if is_list:
            assert all(isinstance(value, list) for value in values), f"{path}: not a list"
            values = [entry for value in values for entry in value]
    return values
