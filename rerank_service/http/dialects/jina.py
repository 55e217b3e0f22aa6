"""Jina's `/v1/rerank`, as specified at api.jina.ai. Scores are probabilities.

Cohere's version 1 sends the same fields to the same path, so a body may come from either client. The answer therefore
also has the fields that Cohere's client reads: `id`, `meta`, and `message` in an error.
"""

import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from rerank_service.config import LimitsConfig
from rerank_service.errors import InvalidRequest, RerankError
from rerank_service.http.dialects.call import (
    EXAMPLE_RERANK,
    Body,
    Dialect,
    RankingCall,
    RankingQuery,
    Refusal,
    probability,
    top,
)
from rerank_service.http.dialects.cohere import CohereMeta, meta_of
from rerank_service.http.dialects.reading import Documents, TopN, Wire, read, text_of
from rerank_service.messages import Fitting, Ranked

__all__ = ["RERANK"]


class JinaRerankRequest(Wire):
    """Body of Jina's `/v1/rerank`."""

    model: str | None = None
    """Name of a model that this service serves. Null or absent: the default model."""
    query: Annotated[
        str, Field(pattern=r"\S"), BeforeValidator(text_of), WithJsonSchema({"type": "string"}, mode="validation")
    ]
    documents: Documents
    """Strings, or objects with `text`."""
    top_n: TopN | None = None
    """How many results to return. Null or absent: all."""
    return_documents: bool | None = None
    """Whether to return the documents with their scores. Null or absent: no."""
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    """Longer documents are truncated to this many tokens. For Cohere's v1 clients, which use the same path.
    Null or absent: documents are truncated only to the model's window."""


class JinaDocument(Wire):
    """A document, included in the answer on request."""

    text: str


class JinaResult(Wire):
    """The score of one document."""

    index: int
    relevance_score: float
    """Between 0 and 1: the logistic function of the logit."""
    document: JinaDocument | None = None


class JinaUsage(Wire):
    """Tokens of all query-document pairs, with the model's prompt, after truncation."""

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
    """Error body of both Jina and Cohere."""

    detail: str
    message: str


def _read(body: Body, limits: LimitsConfig) -> RankingCall:
    request = read(JinaRerankRequest, body, limits)

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

    query = RankingQuery(request.query, request.documents)
    fitting = Fitting(max_passage_tokens=request.max_tokens_per_doc)
    return RankingCall(request.model, (query,), fitting, reply, lambda index: ("documents", index))


def _refuse(error: RerankError) -> Refusal:
    status = HTTPStatus.UNPROCESSABLE_ENTITY.value if isinstance(error, InvalidRequest) else error.http_status
    return Refusal(status, JinaError(detail=error.message, message=error.message))


RERANK = Dialect(
    name="jina",
    paths=("/v1/rerank",),
    request=JinaRerankRequest,
    response=JinaRerankResponse,
    error=JinaError,
    read=_read,
    refuse=_refuse,
    example=EXAMPLE_RERANK | {"top_n": 1},
)
