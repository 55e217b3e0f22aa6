"""Jina's `/v1/rerank`, as api.jina.ai has it. A score is a probability.

Cohere's version 1 sends the same fields to the same path. Who sent them cannot be told then, so this answer also
carries what Cohere's client reads: `id`, `meta`, and `message` in an error.
"""

import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from rerank_service.config import LimitsConfig
from rerank_service.errors import InvalidRequest, RerankError
from rerank_service.http.dialects.call import Body, Call, Dialect, Question, Refusal, probability, top
from rerank_service.http.dialects.cohere import CohereMeta, meta_of
from rerank_service.http.dialects.reading import Documents, TopN, Wire, check_num_documents, read, text_of
from rerank_service.messages import Fitting, Ranked

__all__ = ["RERANK"]


class JinaRerankRequest(Wire):
    """Body of Jina's `/v1/rerank`."""

    model: str | None = None
    """Name of a model of this service. Null or absent: the default model."""
    query: Annotated[
        str, Field(pattern=r"\S"), BeforeValidator(text_of), WithJsonSchema({"type": "string"}, mode="validation")
    ]
    documents: Documents
    """Texts, or objects with `text`."""
    top_n: TopN | None = None
    """How many results to return. Null or absent: all."""
    return_documents: bool | None = None
    """Whether results carry their document. Null or absent: no."""
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    """A longer document is cut there; Cohere's clients may send it. Null or absent: at the model's window only."""


class JinaDocument(Wire):
    """A document that came back."""

    text: str


class JinaResult(Wire):
    """One document's place."""

    index: int
    relevance_score: float
    """0..1: the logistic function of the logit."""
    document: JinaDocument | None = None


class JinaUsage(Wire):
    """Tokens of all pairs, as the model saw them."""

    total_tokens: int
    prompt_tokens: int


class JinaRerankResponse(Wire):
    """Results, most relevant first."""

    id: str
    model: str
    object: Literal["list"] = "list"
    usage: JinaUsage
    results: tuple[JinaResult, ...]
    meta: CohereMeta


class JinaError(Wire):
    """Jina's error body, and Cohere's."""

    detail: str
    message: str


def _read(body: Body, limits: LimitsConfig) -> Call:
    request = read(JinaRerankRequest, body, limits)
    check_num_documents("documents", len(request.documents), limits)

    def reply(rankings: Sequence[Ranked], model_id: str) -> JinaRerankResponse:
        (ranked,) = rankings
        results = (
            JinaResult(
                index=index,
                relevance_score=probability(logit),
                document=JinaDocument(text=request.documents[index]) if request.return_documents else None,
            )
            for index, logit in top(ranked, request.top_n)
        )
        return JinaRerankResponse(
            id=str(uuid.uuid4()),
            model=model_id,
            usage=JinaUsage(total_tokens=ranked.num_tokens, prompt_tokens=ranked.num_tokens),
            results=tuple(results),
            meta=meta_of(ranked, "1"),
        )

    question = Question(request.query, request.documents)
    fitting = Fitting(max_passage_tokens=request.max_tokens_per_doc)
    return Call(request.model, (question,), fitting, reply, lambda index: ("documents", index))


def _refuse(error: RerankError) -> Refusal:
    is_of_the_wrong_form = isinstance(error, InvalidRequest)
    status = HTTPStatus.UNPROCESSABLE_ENTITY if is_of_the_wrong_form else HTTPStatus(error.http_status)
    return Refusal(status.value, JinaError(detail=error.message, message=error.message))


RERANK = Dialect(
    name="jina",
    paths=("/v1/rerank",),
    request=JinaRerankRequest,
    response=JinaRerankResponse,
    error=JinaError,
    read=_read,
    refuse=_refuse,
)
