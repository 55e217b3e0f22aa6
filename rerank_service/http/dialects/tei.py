"""`/rerank` of Hugging Face's text-embeddings-inference, following the source of that project's router.

Scores are probabilities, or logits with `raw_scores`.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Literal

from pydantic import Field, RootModel

from rerank_service.config import Probability
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
    ReadingRules,
    Refusal,
    top,
)
from rerank_service.http.dialects.reading import Documents, MinProbability, QueryText, TopN, Wire, invalid, read
from rerank_service.messages import Fitting, Ranked, Truncate

__all__ = ["RERANK"]

ErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]


class TeiRerankRequest(Wire):
    """Body of text-embeddings-inference's `/rerank`. Unknown fields are ignored, as in text-embeddings-inference."""

    query: QueryText
    texts: Documents
    truncate: bool | None = None
    """Whether to truncate a query and text that together exceed the model's window; false refuses the request. Null or
    absent: true, unless the service is configured otherwise."""
    truncation_direction: str = "Right"
    """End of a text that is truncated: `Right` or `Left`. The query is never cut at its start."""
    raw_scores: bool = False
    """Whether scores are logits instead of probabilities."""
    return_text: bool = False
    """Whether to return the texts with their scores."""
    top_n: TopN | None = None
    """How many results to return. Null or absent: all. Some clients send this field, which text-embeddings-inference
    itself ignores."""
    model: str | None = None
    """Name of a model that this service serves. An unknown name, null or absent: the default model. An extension:
    text-embeddings-inference serves a single model."""
    min_probability: MinProbability | None = None
    """An extension: leaves out texts with a lower probability. Requires a calibrated model. Null or absent: returns
    all texts."""


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


def _read(body: Body, rules: ReadingRules) -> RankingCall:
    request = read(TeiRerankRequest, body, rules.limits, ignores_unknown=True)
    if (direction := request.truncation_direction.lower()) not in ("left", "right"):
        message = "truncation_direction must be Left or Right"
        raise invalid(("truncation_direction",), message, "unsupported_value")

    def reply(rankings: Sequence[Ranked], _: str, probability: Probability) -> TeiRerankResponse:
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

    truncate = rules.truncate or Truncate.END
    if request.truncate is not None:
        truncate = Truncate.END if request.truncate else Truncate.NONE
    return RankingCall(
        request.model,
        (RankingQuery(request.query, request.texts),),
        Fitting(truncate, keeps_end=direction == "left"),
        reply,
        passage_at=lambda index: ("texts", index),
        way_out="truncate: true",
        any_model=True,
        min_probability=request.min_probability,
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
    paths=("/rerank", "/v1/rerank"),
    request=TeiRerankRequest,
    response=TeiRerankResponse,
    error=TeiError,
    read=_read,
    refuse=_refuse,
    example={"query": EXAMPLE_QUERY, "texts": EXAMPLE_TEXTS, "truncate": True},
    recognises=lambda fields: "texts" in fields,
)
