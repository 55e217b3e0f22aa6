"""Infinity's `/rerank`, as infinity_emb's server has it. A score is a probability, or the logit with `raw_scores`."""

import time
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Literal

from pydantic import RootModel

from rerank_service.config import LimitsConfig
from rerank_service.errors import InvalidRequest, RerankError
from rerank_service.http.dialects.call import Body, Call, Dialect, Fields, Question, Refusal, probability, top
from rerank_service.http.dialects.nim_schema import ErrorDetail
from rerank_service.http.dialects.reading import Documents, QueryText, TopN, Wire, check_num_documents, read
from rerank_service.messages import Fitting, Ranked

__all__ = ["RERANK"]

_NO_MODEL = "default/not-specified"
"""What Infinity's clients send for the default model."""


class InfinityRerankRequest(Wire):
    """Body of Infinity's `/rerank`. Fields it does not have are ignored, as there."""

    query: QueryText
    documents: Documents
    return_documents: bool = False
    """Whether results carry their document."""
    raw_scores: bool = False
    """Whether scores are logits rather than probabilities."""
    model: str | None = _NO_MODEL
    """Name of a model of this service. `default/not-specified`, null or absent: the default model."""
    top_n: TopN | None = None
    """How many results to return. Null or absent: all."""


class InfinityResult(Wire):
    """One document's place."""

    relevance_score: float
    index: int
    document: str | None = None


class InfinityUsage(Wire):
    """Tokens of all pairs, as the model saw them."""

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
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: int


class InfinityError(Wire):
    """Infinity's error body."""

    error: InfinityErrorInfo


class InfinityValidationError(InfinityError):
    """Of a request of the wrong form: with FastAPI's `detail`, which is all that Infinity answers there."""

    detail: tuple[ErrorDetail, ...]


class InfinityErrorBody(RootModel[InfinityValidationError | InfinityError]):
    """Either of the two."""


def _read(body: Body, limits: LimitsConfig) -> Call:
    request = read(InfinityRerankRequest, body, limits, ignores_unknown=True)
    check_num_documents("documents", len(request.documents), limits)

    def reply(rankings: Sequence[Ranked], model_id: str) -> InfinityRerankResponse:
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
    question = Question(request.query, request.documents)
    return Call(model, (question,), Fitting(), reply, lambda index: ("documents", index))


def _refuse(error: RerankError) -> Refusal:
    is_of_the_wrong_form = isinstance(error, InvalidRequest)
    status = HTTPStatus.UNPROCESSABLE_ENTITY.value if is_of_the_wrong_form else error.http_status
    info = InfinityErrorInfo(message=error.message, type=error.category, param=None, code=status)
    if not is_of_the_wrong_form:
        return Refusal(status, InfinityError(error=info))
    detail = tuple(ErrorDetail(loc=loc, msg=text, type=code) for loc, text, code in error.problems)
    return Refusal(status, InfinityValidationError(error=info, detail=detail))


def _recognises(fields: Fields) -> bool:
    if "texts" in fields:  # those of text-embeddings-inference, which has `raw_scores` too
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
    recognises=_recognises,
)
