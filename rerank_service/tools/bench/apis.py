"""Request and reply formats of reranking servers: builds bodies, and reads logits in the order of the passages."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["INFINITY", "NIM", "PLAIN", "VLLM", "PreparedRequest", "RankingApi", "sigmoid_scores"]


@dataclass(frozen=True)
class PreparedRequest:
    """A request that is serialised before the measurement starts."""

    body: bytes
    num_passages: int


@dataclass(frozen=True)
class RankingApi:
    """Request and reply format of a server."""

    path: str
    fields: Callable[[str, Sequence[str]], dict[str, Any]]
    """Builds the JSON body from a query and its passages."""

    read: Callable[[dict[str, Any]], list[tuple[int, float]]]
    """Returns the passage index and the logit of each row of a JSON reply, in any order."""

    note: str | None = None
    """Remark for readers of the logits."""

    def request(self, query: str, passages: Sequence[str], **fields: Any) -> PreparedRequest:
        """Builds a request. `fields`, such as the model, are added to the body."""
        body = self.fields(query, passages) | fields
        return PreparedRequest(json.dumps(body).encode(), len(passages))

    def logits(self, answer: bytes, num_passages: int) -> list[float]:
        """Logits `[num_passages]` in the order of the request. Raises `ValueError` unless each passage has exactly one
        logit."""
        try:
            rows = sorted(self.read(json.loads(answer)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a reply of this API: {answer[:200]!r}") from error
        if [index for index, _ in rows] != list(range(num_passages)):
            raise ValueError(
                f"{len(rows)} scores for {num_passages} passages; each passage must have exactly one score"
            )
        return [logit for _, logit in rows]


def sigmoid_scores(api: RankingApi) -> RankingApi:
    """The same API for a server that returns probabilities."""

    def read(answer: dict[str, Any]) -> list[tuple[int, float]]:
        return [(index, _inverse_sigmoid(score)) for index, score in api.read(answer)]

    note = "returns probabilities; logits are their inverse sigmoid"
    return RankingApi(api.path, api.fields, read, note)


def _inverse_sigmoid(score: float) -> float:
    """Logit of a probability; infinite if the probability was rounded to 0 or 1."""
    if 0 < score < 1:
        return math.log(score / (1 - score))
    return math.copysign(math.inf, score - 0.5)


def _cohere_api(extra: dict[str, Any]) -> RankingApi:
    return RankingApi(
        "/rerank",
        lambda query, passages: {"query": query, "documents": list(passages), **extra},
        lambda reply: [(row["index"], row["relevance_score"]) for row in reply["results"]],
    )


NIM = RankingApi(
    "/v1/ranking",
    lambda query, passages: {"query": {"text": query}, "passages": [{"text": passage} for passage in passages]},
    lambda reply: [(row["index"], row["logit"]) for row in reply["rankings"]],
)
"""The API of this service and of NVIDIA's."""

INFINITY = _cohere_api({"raw_scores": True})
"""The API of infinity-emb, with raw scores."""

VLLM = _cohere_api({"use_activation": False})
"""The API of vLLM, with raw scores."""

PLAIN = RankingApi(
    "/rank",
    lambda query, passages: {"query": query, "passages": list(passages)},
    lambda reply: list(enumerate(reply["logits"])),
)
"""The API of the small servers in `benchmarks/peers/servers`."""
