"""Jina's `/v1/rerank`, as specified in Jina's OpenAPI document of April 2026. Scores are probabilities.

Cohere's version 1 and Voyage send the same fields to the same path, so a body may come from any of the three clients.
The answer therefore also has the fields that Cohere's client reads (`id`, `meta`, and `message` in an error) and the
`data` that Voyage's clients read, unless a field of the body is not Voyage's.
"""

import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Literal

from pydantic import Field

from rerank_service.config import Probability
from rerank_service.errors import InvalidRequest, RerankError
from rerank_service.http.dialects.call import (
    EXAMPLE_RERANK,
    Body,
    Dialect,
    RankingCall,
    RankingQuery,
    ReadingRules,
    Refusal,
    top,
)
from rerank_service.http.dialects.cohere import CohereMeta, meta_of
from rerank_service.http.dialects.reading import (
    Documents,
    MinProbability,
    QueryOrObject,
    ReturnedDocument,
    TopN,
    Wire,
    read,
    returned,
)
from rerank_service.messages import Fitting, Ranked, Truncate

__all__ = ["RERANK"]


class JinaRerankRequest(Wire):
    """Body of Jina's `/v1/rerank`."""

    model: str | None = None
    """Name of a model that this service serves. Null or absent: the default model."""
    query: QueryOrObject
    documents: Documents
    """Strings, or objects with `text`."""
    top_n: TopN | None = None
    """How many results to return. Null or absent: all."""
    return_documents: bool | None = None
    """Whether to return the documents with their scores. Null or absent: yes, as in Jina's API."""
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    """Longer documents are truncated to this many tokens. For Cohere's v1 clients, which use the same path.
    Null or absent: documents are truncated only to the model's window."""
    max_doc_length: Annotated[int, Field(ge=1)] | None = None
    """Longer documents are truncated to this many tokens. Jina's name for `max_tokens_per_doc`."""
    truncation: bool | None = None
    """Whether to truncate a query and document that together exceed the model's window; false refuses the request. Null
    or absent: true, unless the service is configured otherwise."""
    min_probability: MinProbability | None = None
    """An extension: leaves out documents with a lower probability. Requires a calibrated model. Null or absent: returns
    all documents."""


class JinaResult(Wire):
    """The score of one document."""

    index: int
    relevance_score: float
    """Between 0 and 1: the logistic function of the logit, or the calibrated probability."""
    document: ReturnedDocument = None
    """The document as it was sent; a string becomes `{"text": ...}`. The setting `paths` can return strings instead."""


class JinaScore(Wire):
    """The score of one document, in Voyage's form."""

    relevance_score: float
    index: int


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
    data: tuple[JinaScore, ...] | None = None
    """The same scores for Voyage's clients. Absent if the body has a field that Voyage does not have."""
    meta: CohereMeta


class JinaError(Wire):
    """Error body of both Jina and Cohere."""

    detail: str
    message: str


def _read(body: Body, rules: ReadingRules) -> RankingCall:
    request = read(JinaRerankRequest, body, rules.limits)

    returns_documents = request.return_documents is not False
    max_tokens = request.max_tokens_per_doc or request.max_doc_length
    may_be_voyages = request.top_n is None and max_tokens is None

    def reply(rankings: Sequence[Ranked], model_id: str, probability: Probability) -> JinaRerankResponse:
        (ranked,) = rankings
        sent, results = body.fields["documents"], []
        for index, logit in top(ranked, request.top_n):
            document = returned(sent[index], as_string=rules.returns_strings) if returns_documents else None
            results.append(JinaResult(index=index, relevance_score=probability(logit), document=document))
        scores = (JinaScore(index=one.index, relevance_score=one.relevance_score) for one in results)
        return JinaRerankResponse(
            id=str(uuid.uuid4()),
            model=model_id,
            usage=JinaUsage(total_tokens=ranked.num_tokens, prompt_tokens=ranked.num_tokens),
            results=tuple(results),
            data=tuple(scores) if may_be_voyages else None,
            meta=meta_of(ranked, "1"),
        )

    truncate = rules.truncate or Truncate.END
    if request.truncation is not None:
        truncate = Truncate.END if request.truncation else Truncate.NONE
    return RankingCall(
        request.model,
        (RankingQuery(request.query, request.documents),),
        Fitting(truncate, max_tokens),
        reply,
        passage_at=lambda index: ("documents", index),
        way_out="truncation: true",
        min_probability=request.min_probability,
    )


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
