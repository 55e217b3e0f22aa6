"""Voyage's `/v1/rerank`, as specified at docs.voyageai.com. Scores are probabilities.

Jina's API has the field `truncation` too, so a body without `top_k` may also come from a client of Jina. The answer
then has the `results` that Jina's clients read.
"""

from collections.abc import Sequence
from typing import Literal

from rerank_service.config import Probability
from rerank_service.errors import RerankError
from rerank_service.http.dialects.call import (
    EXAMPLE_RERANK,
    Body,
    Dialect,
    Fields,
    RankingCall,
    RankingQuery,
    ReadingRules,
    Refusal,
    top,
)
from rerank_service.http.dialects.reading import Documents, MinProbability, QueryText, TopN, Wire, read
from rerank_service.messages import Fitting, Ranked, Truncate

__all__ = ["RERANK"]


class VoyageRerankRequest(Wire):
    """Body of Voyage's `/v1/rerank`."""

    query: QueryText
    documents: Documents
    model: str | None = None
    """Name of a model that this service serves. Null or absent: the default model."""
    top_k: TopN | None = None
    """How many results to return. Null or absent: all."""
    return_documents: bool | None = None
    """Whether to return the documents with their scores. Null or absent: no."""
    truncation: bool | None = None
    """Whether to truncate a query and document that together exceed the model's window; false refuses the request. Null
    or absent: true."""
    min_probability: MinProbability | None = None
    """An extension: leaves out documents with a lower probability. Requires a calibrated model. Null or absent: returns
    all documents."""


class VoyageResult(Wire):
    """The score of one document."""

    relevance_score: float
    """Between 0 and 1: the logistic function of the logit, or the calibrated probability."""
    index: int
    document: str | None = None


class VoyageUsage(Wire):
    """Tokens of all query-document pairs, with the model's prompt, after truncation."""

    total_tokens: int


class VoyageRerankResponse(Wire):
    """Results, most relevant first."""

    object: Literal["list"] = "list"
    data: tuple[VoyageResult, ...]
    results: tuple[VoyageResult, ...] | None = None
    """The same as `data`, for Jina's clients. Present if the body has `truncation` but not `top_k`."""
    model: str
    usage: VoyageUsage


class VoyageError(Wire):
    """Voyage's error body."""

    detail: str


def _read(body: Body, rules: ReadingRules) -> RankingCall:
    request = read(VoyageRerankRequest, body, rules.limits)
    may_be_jinas = request.truncation is not None and request.top_k is None

    def reply(rankings: Sequence[Ranked], model_id: str, probability: Probability) -> VoyageRerankResponse:
        (ranked,) = rankings
        data = tuple(
            VoyageResult(
                relevance_score=probability(logit),
                index=index,
                document=request.documents[index] if request.return_documents else None,
            )
            for index, logit in top(ranked, request.top_k)
        )
        return VoyageRerankResponse(
            data=data,
            results=data if may_be_jinas else None,
            model=model_id,
            usage=VoyageUsage(total_tokens=ranked.num_tokens),
        )

    truncate = rules.truncate or Truncate.END
    if request.truncation is not None:
        truncate = Truncate.END if request.truncation else Truncate.NONE
    return RankingCall(
        request.model,
        (RankingQuery(request.query, request.documents),),
        Fitting(truncate),
        reply,
        passage_at=lambda index: ("documents", index),
        way_out="truncation: true",
        min_probability=request.min_probability,
    )


def _refuse(error: RerankError) -> Refusal:
    return Refusal(error.http_status, VoyageError(detail=error.message))


_JINAS_FIELDS = frozenset(("top_n", "max_doc_length", "return_embeddings"))
"""Fields of Jina's API, which also has `truncation`. Voyage itself refuses `top_n`."""


def _recognises(fields: Fields) -> bool:
    return "top_k" in fields or ("truncation" in fields and _JINAS_FIELDS.isdisjoint(fields))


RERANK = Dialect(
    name="voyage",
    paths=("/v1/rerank",),
    request=VoyageRerankRequest,
    response=VoyageRerankResponse,
    error=VoyageError,
    read=_read,
    refuse=_refuse,
    example=EXAMPLE_RERANK | {"top_k": 1},
    recognises=_recognises,
)
