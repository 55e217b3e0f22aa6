"""How reranking servers are asked, and how their scores are read back as logits in the request's order.

Knows nothing of connections: a `RankingApi` makes bodies and reads replies.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["INFINITY", "NIM", "PLAIN", "VLLM", "PreparedRequest", "RankingApi", "sigmoid_scores"]


@dataclass(frozen=True)
class PreparedRequest:
    """A request ready to be sent, so that making it costs nothing while the clock runs."""

    body: bytes
    num_passages: int


@dataclass(frozen=True)
class RankingApi:
    """One way to ask for a ranking."""

    path: str
    fields: Callable[[str, Sequence[str]], dict[str, Any]]
    """Query and passages -> the JSON body."""

    read: Callable[[dict[str, Any]], list[tuple[int, float]]]
    """The JSON answer -> passage index and logit of each row, in any order."""

    note: str | None = None
    """What a reader of the logits must know."""

    def request(self, query: str, passages: Sequence[str], **fields: Any) -> PreparedRequest:
        """`fields` are added to the body, for instance the model."""
        body = self.fields(query, passages) | fields
        return PreparedRequest(json.dumps(body).encode(), len(passages))

    def logits(self, answer: bytes, num_passages: int) -> list[float]:
        """Logits `[num_passages]` in the request's order; `ValueError` if they are not of exactly its passages."""
        try:
            rows = sorted(self.read(json.loads(answer)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a reply of this API: {answer[:200]!r}") from error
        if [index for index, _ in rows] != list(range(num_passages)):
            raise ValueError(f"{len(rows)} scores for {num_passages} passages, or some twice")
        return [logit for _, logit in rows]


def sigmoid_scores(api: RankingApi) -> RankingApi:
    """The same API for a server that returns probabilities."""

    def read(answer: dict[str, Any]) -> list[tuple[int, float]]:
        return [(index, _inverse_sigmoid(score)) for index, score in api.read(answer)]

    note = "answers probabilities; logits are their inverse sigmoid"
    return RankingApi(api.path, api.fields, read, note)


def _inverse_sigmoid(score: float) -> float:
    """Infinite for a probability that was rounded to 0 or 1."""
    if 0 < score < 1:
        return math.log(score / (1 - score))
    return math.copysign(math.inf, score - 0.5)


def _nim_fields(query: str, passages: Sequence[str]) -> dict[str, Any]:
    return {"query": {"text": query}, "passages": [{"text": passage} for passage in passages]}


def _nim_rows(answer: dict[str, Any]) -> list[tuple[int, float]]:
    return [(row["index"], row["logit"]) for row in answer["rankings"]]


def _cohere_fields(query: str, passages: Sequence[str]) -> dict[str, Any]:
    return {"query": query, "documents": list(passages)}


def _infinity_fields(query: str, passages: Sequence[str]) -> dict[str, Any]:
    return _cohere_fields(query, passages) | {"raw_scores": True}


def _vllm_fields(query: str, passages: Sequence[str]) -> dict[str, Any]:
    return _cohere_fields(query, passages) | {"use_activation": False}


def _cohere_rows(answer: dict[str, Any]) -> list[tuple[int, float]]:
    return [(row["index"], row["relevance_score"]) for row in answer["results"]]


def _plain_fields(query: str, passages: Sequence[str]) -> dict[str, Any]:
    return {"query": query, "passages": list(passages)}


def _plain_rows(answer: dict[str, Any]) -> list[tuple[int, float]]:
    return list(enumerate(answer["logits"]))


NIM = RankingApi("/v1/ranking", _nim_fields, _nim_rows)
"""This service, and NVIDIA's."""

INFINITY = RankingApi("/rerank", _infinity_fields, _cohere_rows)
"""infinity-emb, asked for raw scores."""

VLLM = RankingApi("/rerank", _vllm_fields, _cohere_rows)
"""vLLM, asked for raw scores."""

PLAIN = RankingApi("/rank", _plain_fields, _plain_rows)
"""The small servers in `benchmarks/peers/servers`."""
