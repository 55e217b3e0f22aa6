"""Cohere's `/v1/rerank` and `/v2/rerank`, as specified at docs.cohere.com and used by Cohere's own Python client.

Scores are probabilities: Cohere documents the range 0 to 1. A body of version 1 may also come from a client of
Together, and a body of version 2 from a client of vLLM. The answers therefore also have the fields that these clients
read: `model` and `usage`, `object` in version 1, and documents in version 2.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from rerank_service.config import Probability
from rerank_service.errors import RerankError
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
from rerank_service.http.dialects.reading import (
    Documents,
    MinProbability,
    QueryText,
    ReturnedDocument,
    TopN,
    Wire,
    invalid,
    read,
    returned,
    text_of,
)
from rerank_service.messages import Fitting, PassageWindows, Ranked, Truncate

__all__ = ["V1", "V2", "CohereMeta", "meta_of"]

_DOCUMENTS_PER_SEARCH_UNIT = 100
_DEFAULT_RANK_FIELDS = ("text",)
_DEFAULT_TOKENS_PER_DOCUMENT = 4096


class CohereRerankV2Request(Wire):
    """Body of Cohere's `/v2/rerank`."""

    model: str | None = None
    """Name of a model that this service serves. Required, unless `service.default_model` is configured."""
    query: QueryText
    documents: Documents
    """Strings, or objects with `text`."""
    top_n: TopN | None = None
    """How many results to return. Null or absent: all."""
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    """Longer documents are truncated to this many tokens. A truncated document that still exceeds the model's window is
    ranked in several windows. Null or absent: documents are truncated to 4096 tokens, as in Cohere's API, and to the
    window."""
    return_documents: bool | None = None
    """Whether to return the documents with their scores. The field belongs only to version 1, but some clients send it
    to version 2. Null or absent: yes, as in vLLM's API."""
    priority: Annotated[int, Field(ge=0, le=999)] | None = None
    """Accepted and ignored, because requests share the device fairly."""
    min_probability: MinProbability | None = None
    """An extension: leaves out documents with a lower probability. Requires a calibrated model. Null or absent: returns
    all documents."""


def _objects_or_texts(documents: tuple[Any, ...]) -> tuple[str | Mapping[str, Any], ...]:
    if not all(isinstance(document, str | dict) for document in documents):
        raise PydanticCustomError("document_type", "has an entry that is neither a string nor an object")
    return documents


class CohereRerankV1Request(Wire):
    """Body of Cohere's `/v1/rerank`."""

    model: str | None = None
    """Name of a model that this service serves. Null or absent: the default model."""
    query: QueryText
    documents: Annotated[
        tuple[Any, ...],
        Field(min_length=1),
        AfterValidator(_objects_or_texts),
        WithJsonSchema(
            {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}},
            mode="validation",
        ),
    ]
    """Strings, or objects whose `rank_fields` are ranked."""
    top_n: TopN | None = None
    """How many results to return. Null or absent: all."""
    rank_fields: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Fields to rank when documents are objects. Null or absent: `text`."""
    return_documents: bool | None = None
    """Whether to return the documents with their scores. Null or absent: no."""
    max_chunks_per_doc: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of windows in which a document longer than the model's window is ranked; the best window's score
    counts. Capped by the service's `limits.max_windows_per_passage`. Null or absent: 1, which truncates the document,
    as Cohere specifies."""
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    """Longer documents are truncated to this many tokens. Null or absent: documents are truncated only to the model's
    window."""
    min_probability: MinProbability | None = None
    """An extension: leaves out documents with a lower probability. Requires a calibrated model. Null or absent: returns
    all documents."""


class CohereResult(Wire):
    """The score of one document."""

    document: ReturnedDocument = None
    """The document as it was sent; a string becomes `{"text": ...}`."""
    index: int
    relevance_score: float
    """Between 0 and 1: the logistic function of the logit, or the calibrated probability."""


class CohereVersion(Wire):
    """Version of the API."""

    version: str
    is_experimental: bool = False


class CohereBilledUnits(Wire):
    """Billing units as Cohere counts them: one for a query with up to 100 documents."""

    search_units: int


class CohereTokens(Wire):
    """Tokens of all query-document pairs, with the model's prompt, after truncation."""

    input_tokens: int
    output_tokens: int = 0


class CohereMeta(Wire):
    """Usage of the request."""

    api_version: CohereVersion
    billed_units: CohereBilledUnits
    tokens: CohereTokens


class CohereUsage(Wire):
    """Tokens of all query-document pairs, with the model's prompt, after truncation."""

    prompt_tokens: int
    total_tokens: int


class _CohereRerankResponse(Wire):
    id: str
    results: tuple[CohereResult, ...]
    meta: CohereMeta
    model: str
    usage: CohereUsage


class CohereRerankResponse(_CohereRerankResponse):
    """Results, most relevant first, with the fields that Together's clients read."""

    object: Literal["rerank"] = "rerank"


class CohereRerankV2Response(_CohereRerankResponse):
    """Results, most relevant first, with the fields that vLLM's clients read."""


class CohereError(Wire):
    """Cohere's error body."""

    message: str


class CohereV1Error(CohereError):
    """Cohere's error body, with the field that Xinference's clients read."""

    detail: str


def meta_of(ranked: Ranked, version: str) -> CohereMeta:
    """A request's usage in Cohere's form."""
    search_units = -(-len(ranked.logits) // _DOCUMENTS_PER_SEARCH_UNIT)
    return CohereMeta(
        api_version=CohereVersion(version=version),
        billed_units=CohereBilledUnits(search_units=search_units),
        tokens=CohereTokens(input_tokens=ranked.num_tokens),
    )


def _usage(ranked: Ranked) -> CohereUsage:
    return CohereUsage(prompt_tokens=ranked.num_tokens, total_tokens=ranked.num_tokens)


def _read_v2(body: Body, rules: ReadingRules) -> RankingCall:
    request = read(CohereRerankV2Request, body, rules.limits)
    if request.model is None and rules.needs_model:
        message = "model is required, unless service.default_model is configured"
        raise invalid(("model",), message, "missing")
    max_tokens = request.max_tokens_per_doc
    max_windows = 1 if max_tokens is None else rules.limits.max_windows_per_passage
    returns_documents = request.return_documents is not False

    def reply(rankings: Sequence[Ranked], model_id: str, probability: Probability) -> CohereRerankV2Response:
        (ranked,) = rankings
        return CohereRerankV2Response(
            id=str(uuid.uuid4()),
            results=_results(ranked, request.top_n, body, rules, returns_documents, probability),
            meta=meta_of(ranked, "2"),
            model=model_id,
            usage=_usage(ranked),
        )

    fitting = _fitting(max_tokens or _DEFAULT_TOKENS_PER_DOCUMENT, max_windows, rules)
    query = RankingQuery(request.query, request.documents)
    return RankingCall(
        request.model,
        (query,),
        fitting,
        reply,
        passage_at=lambda index: ("documents", index),
        min_probability=request.min_probability,
    )


def _read_v1(body: Body, rules: ReadingRules) -> RankingCall:
    request = read(CohereRerankV1Request, body, rules.limits)
    fields = request.rank_fields or _DEFAULT_RANK_FIELDS
    texts = [_text(document, fields, index) for index, document in enumerate(request.documents)]
    max_windows = min(request.max_chunks_per_doc or 1, rules.limits.max_windows_per_passage)

    def reply(rankings: Sequence[Ranked], model_id: str, probability: Probability) -> CohereRerankResponse:
        (ranked,) = rankings
        return CohereRerankResponse(
            id=str(uuid.uuid4()),
            results=_results(ranked, request.top_n, body, rules, bool(request.return_documents), probability),
            meta=meta_of(ranked, "1"),
            model=model_id,
            usage=_usage(ranked),
        )

    fitting = _fitting(request.max_tokens_per_doc, max_windows, rules)
    query = RankingQuery(request.query, texts)
    return RankingCall(
        request.model,
        (query,),
        fitting,
        reply,
        passage_at=lambda index: ("documents", index),
        min_probability=request.min_probability,
    )


def _fitting(max_tokens: int | None, max_windows: int, rules: ReadingRules) -> Fitting:
    windows = PassageWindows(max_windows) if max_windows > 1 else None
    return Fitting(rules.truncate or Truncate.END, max_tokens, windows)


def _results(
    ranked: Ranked,
    top_n: int | None,
    body: Body,
    rules: ReadingRules,
    returns_documents: bool,
    probability: Probability,
) -> tuple[CohereResult, ...]:
    documents, results = body.fields["documents"], []
    for index, logit in top(ranked, top_n):
        document = returned(documents[index], as_string=rules.returns_strings) if returns_documents else None
        results.append(CohereResult(document=document, index=index, relevance_score=probability(logit)))
    return tuple(results)


def _text(document: str | Mapping[str, Any], fields: Sequence[str], index: int) -> str:
    """Returns the text to rank. If there are several fields, each becomes a line with its name, as Cohere advises."""
    if isinstance(document, str):
        return document
    if fields == _DEFAULT_RANK_FIELDS and document.get("text") is None and "content" in document:
        try:
            return str(text_of(document))
        except PydanticCustomError as error:
            raise invalid(("documents", index), f"documents[{index}] {error.message()}", "document_type") from None
    values = [(field, document[field]) for field in fields if document.get(field) is not None]
    if not values or not all(isinstance(value, str) for _, value in values):
        message = (
            f"documents[{index}] must be a string, or an object with text in the fields: {', '.join(fields)[:200]}"
        )
        raise invalid(("documents", index), message, "document_type")
    if len(values) == 1:
        return str(values[0][1])
    return "\n".join(f"{field}: {value}" for field, value in values)


def _refuse_v1(error: RerankError) -> Refusal:
    return Refusal(error.http_status, CohereV1Error(message=error.message, detail=error.message))


def _refuse_v2(error: RerankError) -> Refusal:
    return Refusal(error.http_status, CohereError(message=error.message))


V1 = Dialect(
    name="cohere",
    paths=("/v1/rerank",),
    request=CohereRerankV1Request,
    response=CohereRerankResponse,
    error=CohereV1Error,
    read=_read_v1,
    refuse=_refuse_v1,
    example=EXAMPLE_RERANK | {"top_n": 1, "max_chunks_per_doc": 10},
    recognises=lambda fields: not fields.keys().isdisjoint(("rank_fields", "max_chunks_per_doc")),
)
V2 = Dialect(
    name="cohere",
    paths=("/v2/rerank",),
    request=CohereRerankV2Request,
    response=CohereRerankV2Response,
    error=CohereError,
    read=_read_v2,
    refuse=_refuse_v2,
    example=EXAMPLE_RERANK | {"top_n": 1},
)
