"""Bodies and readers for the tests of all APIs."""

import math
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx

from rerank_service.config import ModelConfig
from tests.local_service import LocalReplica, client_of, local_api

QUERY = "how can I open a door?"
TEXTS = ["Push the handle", "Ask for help", "Shout at it"]
LONG = "long " * 200
MODEL = "nvidia/llama-3.2-rerank"
WINDOW_TOKENS = 64
DOCUMENTS: dict[str, Any] = {"query": QUERY, "documents": TEXTS}
TEI: dict[str, Any] = {"query": QUERY, "texts": TEXTS}
VOYAGE = DOCUMENTS | {"truncation": True}
INFINITY = DOCUMENTS | {"raw_scores": False}
COHERE_V1 = DOCUMENTS | {"max_chunks_per_doc": 1}
VLLM = DOCUMENTS | {"use_activation": True}
ALL_FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "jina": ("/v1/rerank", DOCUMENTS),
    "cohere v1": ("/v1/rerank", COHERE_V1),
    "cohere v2": ("/v2/rerank", DOCUMENTS | {"model": MODEL}),
    "tei": ("/rerank", TEI),
    "vllm": ("/rerank", DOCUMENTS),
    "vllm v1": ("/v1/rerank", VLLM),
    "vllm v2": ("/v2/rerank", VLLM),
    "vllm score": ("/score", {"text_1": QUERY, "text_2": TEXTS}),
    "vllm v1 score": ("/v1/score", {"queries": QUERY, "documents": TEXTS}),
    "infinity": ("/rerank", INFINITY),
    "voyage": ("/v1/rerank", VOYAGE),
}
"""For each dialect, a path and a minimal body that the path accepts."""


def serving(model: ModelConfig, replica: Any = None, **settings: Any) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    return client_of(local_api([model], {model.id: replica or LocalReplica(model)}, **settings))


async def logits_of(client: httpx.AsyncClient, texts: list[str] = TEXTS) -> list[float]:
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in texts]}
    rankings = (await client.post("/v1/ranking", json=body)).json()["rankings"]
    return [ranking["logit"] for ranking in sorted(rankings, key=lambda ranking: ranking["index"])]


async def ask(client: httpx.AsyncClient, name: str, **changes: Any) -> httpx.Response:
    path, body = ALL_FORMS[name]
    return await client.post(path, json=body | changes)


def places(answer: Any) -> list[Mapping[str, Any]]:
    """The results, whatever name their field has in the dialect."""
    if isinstance(answer, list):
        return answer
    found: list[Mapping[str, Any]] = answer.get("results") or answer["data"]
    return found


def score_of(place: Mapping[str, Any]) -> float:
    return float(place.get("relevance_score", place.get("score", math.nan)))


def scores_by_index(response: httpx.Response) -> dict[int, float]:
    return {place["index"]: score_of(place) for place in places(response.json())}


UNKNOWN = (
    "Unknown model 'nope'; this service has: nvidia/llama-3.2-rerank, rerank-v3.5. "
    "Send one of these names, or add the name to models[].aliases"
)
UNKNOWN_MODEL: dict[str, Any] = {
    "jina": {"detail": UNKNOWN, "message": UNKNOWN},
    "cohere v1": {"detail": UNKNOWN, "message": UNKNOWN},
    "cohere v2": {"message": UNKNOWN},
    "tei": {"error": UNKNOWN, "error_type": "Validation"},  # only the form: text-embeddings-inference ignores the model
    "vllm": {"error": {"message": UNKNOWN, "type": "NotFoundError", "param": "model", "code": 404}},
    "vllm score": {"error": {"message": UNKNOWN, "type": "NotFoundError", "param": "model", "code": 404}},
    "infinity": {"error": {"message": UNKNOWN, "type": "not_found_error", "param": None, "code": 404}},
    "voyage": {"detail": UNKNOWN},
}


def message_of(answer: Any) -> str:
    """The error message, from the dialect's own field."""
    error = answer.get("error")
    nested = error["message"] if isinstance(error, dict) else error
    return str(answer.get("message") or nested or answer["detail"])


LOSS_BODIES: dict[str, tuple[str, dict[str, Any]]] = ALL_FORMS | {
    "nim": ("/v1/ranking", {"query": {"text": QUERY}, "passages": [{"text": text} for text in [*TEXTS, TEXTS[0]]]}),
    "vllm score of several queries": ("/score", {"queries": ["a", "b", "a"], "documents": TEXTS}),
}
