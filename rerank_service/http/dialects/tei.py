"""`/rerank` of Hugging Face's text-embeddings-inference, following the source of that project's router.

Scores are probabilities, or logits with `raw_scores`.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Literal

from pydantic import Field, RootModel

from rerank_service.config import LimitsConfig
from rerank_service.errors import (
    BodyTooLarge,
    InvalidApiKey,
    InvalidRequest,
    PairTooLong,
    QueueFull,
    RateLimited,
    ReplicaUnavailable,
    RequestTooLarge,
    RerankError,
    UnknownModel,
    UnsupportedMediaType,
    WaitTooLong,
)
from rerank_service.http.dialects.call import (
    EXAMPLE_QUERY,
    EXAMPLE_TEXTS,
    Body,
    Dialect,
    RankingCall,
    RankingQuery,
    Refusal,
    probability,
    top,
)
from rerank_service.http.dialects.reading import Documents, QueryText, TopN, Wire, invalid, read
from rerank_service.messages import Fitting, Ranked, Truncate

__all__ = ["RERANK"]

ErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]


class TeiRerankRequest(Wire):
    """Body of text-embeddings-inference's `/rerank`. Unknown fields are ignored, as in text-embeddings-inference."""

    query: QueryText
    texts: Documents
    truncate: bool | None = None
    """Whether to truncate a query and text that together exceed the model's window; false refuses the request. Null or
    absent: true."""
    truncation_direction: str = "Right"
    """Only `Right` is supported: the end is truncated."""
    raw_scores: bool = False
    """Whether scores are logits instead of probabilities."""
    return_text: bool = False
    """Whether to return the texts with their scores."""
    top_n: TopN | None = None
    """How many results to return. Null or absent: all. Some clients send this field, which text-embeddings-inference
    itself ignores."""
    model: str | None = None
    """Name of a model that this service serves. Null or absent: the default model. An extension:
    text-embeddings-inference serves a single model."""


class TeiRank(Wire):
    """The score of one text."""

    index: int
    text: str | None = None
    score: float


class TeiRerankResponse(RootModel[tuple[TeiRank, ...]]):
    """Results, most relevant first."""


class TeiError(Wire):
    """Error body of text-embeddings-inference."""

    error: str
    error_type: Annotated[ErrorType, Field(description="Kind of error.")]


def _read(body: Body, limits: LimitsConfig) -> RankingCall:
    request = read(TeiRerankRequest, body, limits, ignores_unknown=True)
    if request.truncation_direction.lower() != "right":
        message = "truncation_direction must be Right (the end is truncated); leave the field out"
        raise invalid(("truncation_direction",), message, "unsupported_value")

    def reply(rankings: Sequence[Ranked], _: str) -> TeiRerankResponse:
        (ranked,) = rankings
        ranks = (
            TeiRank(
                index=index,
                text=request.texts[index] if request.return_text else None,
                score=logit if request.raw_scores else probability(logit),
            )
            for index, logit in top(ranked, request.top_n)
        )
        return TeiRerankResponse(tuple(ranks))

    truncate = Truncate.NONE if request.truncate is False else Truncate.END
    return RankingCall(
        request.model,
        (RankingQuery(request.query, request.texts),),
        Fitting(truncate),
        reply,
        passage_at=lambda index: ("texts", index),
        way_out="truncate: true",
    )


_STATUS: dict[ErrorType, int] = {
    "Validation": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "Overloaded": HTTPStatus.TOO_MANY_REQUESTS,
    "Unhealthy": HTTPStatus.SERVICE_UNAVAILABLE,
    "Backend": HTTPStatus.FAILED_DEPENDENCY,
    "Empty": HTTPStatus.BAD_REQUEST,
    "Tokenizer": HTTPStatus.UNPROCESSABLE_ENTITY,
}
"""Statuses of text-embeddings-inference."""


def _refuse(error: RerankError) -> Refusal:
    error_type, status = _classify(error)
    return Refusal(status, TeiError(error=error.message, error_type=error_type))


def _classify(error: RerankError) -> tuple[ErrorType, int]:
    """Returns the error type and the status: the status of text-embeddings-inference if it has this kind of error,
    otherwise this service's status."""
    error_type: ErrorType
    match error:
        case InvalidRequest():
            codes = {problem.code for problem in error.problems}
            if codes == {"too_short"}:
                return "Empty", _STATUS["Empty"]
            is_too_large = codes == {"too_many_passages"}
            return (
                "Validation",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE if is_too_large else HTTPStatus.UNPROCESSABLE_ENTITY,
            )
        case InvalidApiKey() | UnknownModel() | UnsupportedMediaType():
            return "Validation", error.http_status
        case PairTooLong() | BodyTooLarge() | RequestTooLarge():
            error_type = "Validation"
        case QueueFull() | WaitTooLong() | RateLimited():
            error_type = "Overloaded"
        case ReplicaUnavailable():
            error_type = "Unhealthy"
        case _:
            error_type = "Backend"
    return error_type, _STATUS[error_type]


RERANK = Dialect(
    name="tei",
    paths=("/rerank",),
    request=TeiRerankRequest,
    response=TeiRerankResponse,
    error=TeiError,
    read=_read,
    refuse=_refuse,
    example={"query": EXAMPLE_QUERY, "texts": EXAMPLE_TEXTS, "truncate": True},
    recognises=lambda fields: "texts" in fields,
)
