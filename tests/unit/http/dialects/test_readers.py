"""Answers satisfy the schemas that vendors publish. If several APIs share a body, the answer satisfies all of them.

The schemas state facts of the vendors' documents: the OpenAPI documents of Cohere (2026-08-20), Infinity (0.0.77) and
text-embeddings-inference (1.9.3), and the documentation or source of Jina, Voyage, vLLM and Xinference.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from rerank_service.config import ModelConfig
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import local_model

INTEGER, NUMBER, STRING = {"type": "integer"}, {"type": "number"}, {"type": "string"}
TEXT_OBJECT = {"type": "object", "required": ["text"], "properties": {"text": STRING}}


def an_object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": required | optional}


def a_list(entry: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": entry}


TOKENS = an_object({"prompt_tokens": INTEGER, "total_tokens": INTEGER})
SCORE = {"index": INTEGER, "relevance_score": NUMBER}
META = an_object(
    {},
    api_version=an_object({"version": STRING}),
    billed_units=an_object({}, search_units=NUMBER),
    tokens=an_object({}, input_tokens=NUMBER, output_tokens=NUMBER),
)
READERS: dict[str, dict[str, Any]] = {
    "cohere v1": an_object({"results": a_list(an_object(SCORE, document=TEXT_OBJECT))}, id=STRING, meta=META),
    "cohere v2": an_object({"results": a_list(an_object(SCORE))}, id=STRING, meta=META),
    "jina": an_object(
        {
            "model": STRING,
            "object": {"const": "list"},
            "usage": an_object({"total_tokens": INTEGER}),
            "results": a_list(an_object(SCORE, document={"anyOf": [STRING, TEXT_OBJECT]})),
        }
    ),
    "voyage": an_object(
        {
            "object": {"const": "list"},
            "data": a_list(an_object(SCORE, document=STRING)),
            "model": STRING,
            "usage": an_object({"total_tokens": INTEGER}),
        }
    ),
    "vllm": an_object(
        {
            "id": STRING,
            "model": STRING,
            "usage": TOKENS,
            "results": a_list(an_object(SCORE | {"document": TEXT_OBJECT})),
        }
    ),
    "xinference": an_object({"id": STRING, "results": a_list(an_object(SCORE, document=TEXT_OBJECT)), "meta": META}),
    "infinity": an_object(
        {"results": a_list(an_object(SCORE, document=STRING)), "model": STRING, "usage": TOKENS},
        object={"const": "rerank"},
        id=STRING,
        created=INTEGER,
    ),
    "tei": a_list(an_object({"index": INTEGER, "score": NUMBER}, text=STRING)),
}

SHARED: dict[str, Any] = {"model": "m", "query": "q", "documents": ["a", "b", "c"]}
TEI: dict[str, Any] = {"query": "q", "texts": ["a", "b", "c"], "return_text": True}
BODIES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("/v1/rerank", SHARED, ["jina", "cohere v1", "voyage", "vllm", "xinference"]),
    ("/v1/rerank", SHARED | {"return_documents": False}, ["jina", "cohere v1", "voyage", "xinference"]),
    ("/v1/rerank", SHARED | {"top_n": 2, "return_documents": True}, ["jina", "cohere v1", "vllm", "xinference"]),
    ("/v1/rerank", SHARED | {"max_chunks_per_doc": 2, "return_documents": True}, ["cohere v1", "xinference"]),
    ("/v1/rerank", SHARED | {"top_k": 2, "return_documents": True}, ["voyage"]),
    ("/v2/rerank", SHARED, ["cohere v2", "vllm"]),
    ("/v2/rerank", SHARED | {"top_n": 2, "return_documents": False}, ["cohere v2"]),
    ("/rerank", SHARED, ["vllm", "cohere v2"]),
    ("/rerank", SHARED | {"raw_scores": True, "return_documents": True}, ["infinity"]),
    ("/rerank", TEI, ["tei"]),
    ("/v1/rerank", TEI, ["tei"]),
]


@pytest.fixture
async def client(checkpoints: dict[str, Path]) -> AsyncIterator[httpx.AsyncClient]:
    model: ModelConfig = local_model(checkpoints["llama_bidirec"]).model_copy(update={"id": "m"})
    async with client_of(local_api([model], {"m": LocalReplica(model)})) as c:
        yield c


@pytest.mark.parametrize(("path", "body", "readers"), BODIES)
async def test_an_answer_satisfies_every_reader(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], readers: list[str]
) -> None:
    answer = await client.post(path, json=body)

    assert answer.status_code == 200, answer.text
    for reader in readers:
        Draft202012Validator(READERS[reader]).validate(answer.json())
