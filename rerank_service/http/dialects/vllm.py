"""vLLM's `/rerank` and `/score`, under all their paths, following vLLM's own server.

Scores are probabilities, or logits with `use_activation: false`. Without `truncate_prompt_tokens`, a pair longer than
the model's window is refused, as in vLLM, unless the service is configured otherwise.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidatorFunctionWrapHandler, WithJsonSchema, WrapValidator
from pydantic_core import PydanticKnownError

from rerank_service.errors import Loc, RerankError, dotted
from rerank_service.http.dialects.call import (
    EXAMPLE_QUERY,
    EXAMPLE_RERANK,
    EXAMPLE_TEXTS,
    Body,
    Dialect,
    Fields,
    RankingCall,
    RankingQuery,
    ReadingRules,
    Refusal,
    probability,
    top,
)
from rerank_service.http.dialects.reading import (
    Documents,
    QueryOrObject,
    QueryText,
    Wire,
    invalid,
    place_of,
    read,
    text_of,
)
from rerank_service.messages import Fitting, Ranked, Truncate

__all__ = ["RERANK", "SCORE"]


def _one_or_many_texts(value: Any, texts: ValidatorFunctionWrapHandler) -> Any:
    """Validates a text on its own or a list of texts. A single text does not become a list first, so that an error
    names the field without an index."""
    return texts(value) if isinstance(value, list) else (text_of(value),)


def _one_or_many_queries(value: Any, queries: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, list):
        return queries(value)
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    if not value.strip():
        raise PydanticKnownError("string_pattern_mismatch", {"pattern": r"\S"})
    return (value,)


def _not_zero(tokens: int) -> int:
    if tokens == 0:
        raise ValueError("must be -1 or at least 1")
    return tokens


_JSON_OF_ONE_OR_MANY = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}]}, mode="validation"
)
_OneOrMany = Annotated[Documents, WrapValidator(_one_or_many_texts), _JSON_OF_ONE_OR_MANY]
_Queries = Annotated[
    tuple[QueryText, ...], Field(min_length=1), WrapValidator(_one_or_many_queries), _JSON_OF_ONE_OR_MANY
]

_FORMS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""Pairs of fields in which `/score` accepts the queries and the texts to score."""


class _VllmRequest(Wire):
    model: str | None = None
    """Name of a model that this service serves. Null or absent: the default model."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1), AfterValidator(_not_zero)] | None = None
    """Maximum tokens of the prompt, which contains query and document; longer documents are truncated, but the query is
    not. -1, or more than the model's window: the window. Null or absent: a pair that exceeds the window is refused,
    unless the service is configured otherwise."""
    truncation_side: Literal["left", "right"] | None = None
    """End of the document that is truncated. Null or absent: `right`, vLLM's default for rerankers."""
    max_tokens_per_doc: Annotated[int, Field(ge=0)] = 0
    """Longer documents are truncated to this many tokens. 0: documents are truncated only to the model's window."""
    max_tokens_per_query: Literal[0] = 0
    """Not supported."""
    use_activation: bool | None = None
    """Whether scores are probabilities; false returns logits. Null or absent: true."""
    priority: Literal[0] = 0
    """Not supported."""
    instruction: None = None
    """Not supported: the prompt is fixed for each model."""
    chat_template_kwargs: None = None
    """Not supported."""


class VllmRerankRequest(_VllmRequest):
    """Body of vLLM's `/rerank`. Unknown fields are ignored, as in vLLM."""

    query: QueryOrObject
    documents: _OneOrMany
    """One document or several."""
    top_n: Annotated[int, Field(ge=0)] = 0
    """How many results to return. 0: all."""


class VllmScoreRequest(_VllmRequest):
    """Body of vLLM's `/score`: one query for all texts, or one query per text. The queries and the texts are in one of
    the pairs `text_1` and `text_2`, `queries` and `documents`, `queries` and `items`, or `data_1` and `data_2`."""

    text_1: _Queries | None = None
    text_2: _OneOrMany | None = None
    queries: _Queries | None = None
    documents: _OneOrMany | None = None
    items: _OneOrMany | None = None
    data_1: _Queries | None = None
    data_2: _OneOrMany | None = None


class VllmDocument(Wire):
    """A document of the request."""

    text: str


class VllmResult(Wire):
    """The score of one document."""

    index: int
    document: VllmDocument
    relevance_score: float


class VllmUsage(Wire):
    """Tokens of all query-document pairs, with the model's prompt, after truncation."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = None


class VllmRerankResponse(Wire):
    """Results, most relevant first."""

    id: str
    model: str
    usage: VllmUsage
    results: tuple[VllmResult, ...]


class VllmScore(Wire):
    """The score of one pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class VllmScoreResponse(Wire):
    """Scores in the order of the request."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: tuple[VllmScore, ...]
    usage: VllmUsage


class VllmErrorInfo(Wire):
    """Details of the error."""

    message: str
    type: str
    param: str | None
    code: int


class VllmError(Wire):
    """vLLM's error body."""

    error: VllmErrorInfo


def _read_rerank(body: Body, rules: ReadingRules) -> RankingCall:
    request = read(VllmRerankRequest, body, rules.limits, ignores_unknown=True)

    def reply(rankings: Sequence[Ranked], model_id: str) -> VllmRerankResponse:
        (ranked,) = rankings
        results = (
            VllmResult(
                index=index,
                document=VllmDocument(text=request.documents[index]),
                relevance_score=_score(request, logit),
            )
            for index, logit in top(ranked, request.top_n or None)
        )
        usage = VllmUsage(prompt_tokens=ranked.num_tokens, total_tokens=ranked.num_tokens)
        return VllmRerankResponse(id=f"score-{uuid.uuid4().hex}", model=model_id, usage=usage, results=tuple(results))

    query = RankingQuery(request.query, request.documents)
    return _call(request, rules, (query,), reply, passage_at=lambda index: place_of(body, "documents", index))


def _read_score(body: Body, rules: ReadingRules) -> RankingCall:
    request = read(VllmScoreRequest, body, rules.limits, ignores_unknown=True)
    query_field, text_field = _form(request)
    query_texts, texts = getattr(request, query_field), getattr(request, text_field)
    if len(query_texts) not in (1, len(texts)):
        message = (
            f"{query_field} has {len(query_texts)} entries, and {text_field} has {len(texts)}; "
            "send one query, or one query for each text"
        )
        raise invalid((query_field,), message, "lengths_differ")
    indices_of: dict[str, list[int]] = {}
    for index in range(len(texts)):
        indices_of.setdefault(query_texts[0 if len(query_texts) == 1 else index], []).append(index)
    queries = tuple(
        RankingQuery(query, [texts[index] for index in indices], indices) for query, indices in indices_of.items()
    )

    def reply(rankings: Sequence[Ranked], model_id: str) -> VllmScoreResponse:
        scores: dict[int, float] = {}
        for query, ranked in zip(queries, rankings, strict=True):
            scores.update(zip(query.indices or (), ranked.logits, strict=True))
        num_tokens = sum(ranked.num_tokens for ranked in rankings)
        return VllmScoreResponse(
            id=f"score-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model_id,
            data=tuple(VllmScore(index=index, score=_score(request, scores[index])) for index in range(len(scores))),
            usage=VllmUsage(prompt_tokens=num_tokens, total_tokens=num_tokens, completion_tokens=0),
        )

    return _call(
        request,
        rules,
        queries,
        reply,
        passage_at=lambda index: place_of(body, text_field, index),
        query_at=lambda index: place_of(body, query_field, index if len(query_texts) > 1 else 0),
        is_ranking=False,
    )


def _form(request: VllmScoreRequest) -> tuple[str, str]:
    """Returns the names of the field with the queries and the field with the texts."""
    forms = [form for form in _FORMS if all(getattr(request, field) is not None for field in form)]
    if len(forms) != 1:
        known = ", ".join(" with ".join(form) for form in _FORMS)
        message = f"The body needs queries and texts in exactly one of these pairs of fields: {known}"
        raise invalid((), message, "missing")
    return forms[0]


def _call(
    request: _VllmRequest,
    rules: ReadingRules,
    queries: tuple[RankingQuery, ...],
    reply: Any,
    passage_at: Callable[[int], Loc],
    query_at: Callable[[int], Loc] = lambda _: ("query",),
    is_ranking: bool = True,
) -> RankingCall:
    num_tokens = request.truncate_prompt_tokens
    fitting = Fitting(
        (rules.truncate or Truncate.NONE) if num_tokens is None else Truncate.END,
        request.max_tokens_per_doc or None,
        max_pair_tokens=None if num_tokens == -1 else num_tokens,
        keeps_end=request.truncation_side == "left",
    )
    return RankingCall(
        request.model,
        queries,
        fitting,
        reply,
        passage_at,
        query_at,
        way_out="truncate_prompt_tokens: -1",
        is_ranking=is_ranking,
    )


def _score(request: _VllmRequest, logit: float) -> float:
    return logit if request.use_activation is False else probability(logit)


_TYPES = {
    HTTPStatus.BAD_REQUEST: "BadRequestError",
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalServerError",
}
"""vLLM's error types. For any other status, the type is the status's standard phrase."""


def _refuse(error: RerankError) -> Refusal:
    status = HTTPStatus(error.http_status)
    source, *place = error.problems[0].loc or ("",)
    param = dotted(tuple(place)) if place and source == "body" else None
    info = VllmErrorInfo(message=error.message, type=_TYPES.get(status, status.phrase), param=param, code=status.value)
    return Refusal(status.value, VllmError(error=info))


_OWN_FIELDS = frozenset(
    (
        "cache_salt",
        "chat_template_kwargs",
        "instruction",
        "max_tokens_per_query",
        "mm_processor_kwargs",
        "request_id",
        "truncate_prompt_tokens",
        "truncation_side",
        "use_activation",
    )
)
"""Fields that no other dialect on the shared paths has."""


def _recognises(fields: Fields) -> bool:
    return not fields.keys().isdisjoint(_OWN_FIELDS) or isinstance(fields.get("documents"), str)


RERANK = Dialect(
    name="vllm",
    paths=("/rerank", "/v1/rerank", "/v2/rerank"),
    request=VllmRerankRequest,
    response=VllmRerankResponse,
    error=VllmError,
    read=_read_rerank,
    refuse=_refuse,
    example=EXAMPLE_RERANK | {"top_n": 1, "truncate_prompt_tokens": -1},
    recognises=_recognises,
)
SCORE = Dialect(
    name="vllm",
    paths=("/score", "/v1/score"),
    request=VllmScoreRequest,
    response=VllmScoreResponse,
    error=VllmError,
    read=_read_score,
    refuse=_refuse,
    example={"text_1": EXAMPLE_QUERY, "text_2": EXAMPLE_TEXTS},
)
