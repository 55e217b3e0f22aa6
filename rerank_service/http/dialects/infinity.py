"""Infinity's `/rerank`, following infinity_emb's server. Scores are probabilities, or logits with `raw_scores`."""

import time
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Literal

from pydantic import RootModel

from rerank_service.config import Probability
from rerank_service.errors import InvalidRequest, RerankError
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
from rerank_service.http.dialects.nim import ErrorDetail
from rerank_service.http.dialects.reading import Documents, MinProbability, QueryText, TopN, Wire, read
from rerank_service.messages import Fitting, Ranked, Truncate

__all__ = ["RERANK"]

_NO_MODEL = "default/not-specified"
"""Infinity's clients send this name for the default model."""


class InfinityRerankRequest(Wire):
    """Body of Infinity's `/rerank`. Unknown fields are ignored, as in Infinity."""

    query: QueryText
    documents: Documents
    return_documents: bool = False
    """Whether to return the documents with their scores."""
    raw_scores: bool = False
    """Whether scores are logits instead of probabilities."""
    model: str | None = _NO_MODEL
    """Name of a model that this service serves. `default/not-specified`, null or absent: the default model."""
    top_n: TopN | None = None
    """How many results to return. Null or absent: all."""
    min_probability: MinProbability | None = None
    """An extension: leaves out documents with a lower probability. Requires a calibrated model. Null or absent: returns
    all documents."""


class InfinityResult(Wire):
    """The score of one document."""

    relevance_score: float
    index: int
    document: str | None = None


class InfinityUsage(Wire):
    """Tokens of all query-document pairs, with the model's prompt, after truncation."""

    prompt_tokens: int
    total_tokens: int


class InfinityRerankResponse(Wire):
    """Results, most relevant first."""

    object: Literal["rerank"] = "rerank"
    results: tuple[InfinityResult, ...]
    model: str
    usage: InfinityUsage
    id: str
    created: int


class InfinityErrorInfo(Wire):
    """Details of the error."""

    message: str
    type: str
    param: str | None
    code: int


class InfinityError(Wire):
    """Infinity's error body."""

    error: InfinityErrorInfo


class InfinityValidationError(InfinityError):
    """Body of a validation error. Infinity itself only sends FastAPI's `detail`."""

    detail: tuple[ErrorDetail, ...]


class InfinityErrorBody(RootModel[InfinityValidationError | InfinityError]):
    """Infinity's error body, with `detail` for a validation error."""


def _read(body: Body, rules: ReadingRules) -> RankingCall:
    request = read(InfinityRerankRequest, body, rules.limits, ignores_unknown=True)

    def reply(rankings: Sequence[Ranked], model_id: str, probability: Probability) -> InfinityRerankResponse:
        (ranked,) = rankings
        results = (
            InfinityResult(
                relevance_score=logit if request.raw_scores else probability(logit),
                index=index,
                document=request.documents[index] if request.return_documents else None,
            )
            for index, logit in top(ranked, request.top_n)
        )
        return InfinityRerankResponse(
            results=tuple(results),
            model=model_id,
            usage=InfinityUsage(prompt_tokens=ranked.num_tokens, total_tokens=ranked.num_tokens),
            id=f"infinity-{uuid.uuid4()}",
            created=int(time.time()),
        )

    model = None if request.model == _NO_MODEL else request.model
    query = RankingQuery(request.query, request.documents)
    fitting = Fitting(rules.truncate or Truncate.END)
    return RankingCall(
        model,
        (query,),
        fitting,
        reply,
        passage_at=lambda index: ("documents", index),
        min_probability=request.min_probability,
    )


def _refuse(error: RerankError) -> Refusal:
    is_validation_error = isinstance(error, InvalidRequest)
    status = HTTPStatus.UNPROCESSABLE_ENTITY.value if is_validation_error else error.http_status
    info = InfinityErrorInfo(message=error.message, type=error.category, param=None, code=status)
    if not is_validation_error:
        return Refusal(status, InfinityError(error=info))
    detail = tuple(ErrorDetail(loc=loc, msg=text, type=code) for loc, text, code in error.problems)
    return Refusal(status, InfinityValidationError(error=info, detail=detail))


def _recognises(fields: Fields) -> bool:
    if "texts" in fields:  # a body of text-embeddings-inference, which also has `raw_scores`
        return False
    return "raw_scores" in fields or "return_documents" in fields or fields.get("model") == _NO_MODEL


RERANK = Dialect(
    name="infinity",
    paths=("/rerank",),
    request=InfinityRerankRequest,
    response=InfinityRerankResponse,
    error=InfinityErrorBody,
    read=_read,
    refuse=_refuse,
    example=EXAMPLE_RERANK | {"top_n": 1, "raw_scores": False},
    recognises=_recognises,
)
