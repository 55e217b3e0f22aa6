"""vLLM's `/rerank` and `/score`, under all their paths, as vLLM's own server has them.

A score is a probability, or the logit with `use_activation: false`. Without `truncate_prompt_tokens` a pair beyond the
model's window is refused, as there.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import Field, ValidatorFunctionWrapHandler, WithJsonSchema, WrapValidator
from pydantic_core import PydanticKnownError

from rerank_service.config import LimitsConfig
from rerank_service.errors import Loc, RerankError, dotted
from rerank_service.http.dialects.call import Body, Call, Dialect, Fields, Question, Refusal, probability, top
from rerank_service.http.dialects.reading import (
    Documents,
    QueryText,
    Wire,
    check_num_documents,
    invalid,
    place_of,
    read,
    text_of,
)
from rerank_service.messages import Fitting, Ranked, Truncate

__all__ = ["RERANK", "SCORE"]


def _one_or_many_texts(value: Any, texts: ValidatorFunctionWrapHandler) -> Any:
    """A single text is checked here rather than as a list of one, so that an error names the field without an index."""
    return texts(value) if isinstance(value, list) else (text_of(value),)


def _one_or_many_queries(value: Any, queries: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, list):
        return queries(value)
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    if not value.strip():
        raise PydanticKnownError("string_pattern_mismatch", {"pattern": r"\S"})
    return (value,)


_JSON_OF_ONE_OR_MANY = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}]}, mode="validation"
)
_OneOrMany = Annotated[Documents, WrapValidator(_one_or_many_texts), _JSON_OF_ONE_OR_MANY]
_Queries = Annotated[
    tuple[QueryText, ...], Field(min_length=1), WrapValidator(_one_or_many_queries), _JSON_OF_ONE_OR_MANY
]

_FORMS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""Names under which `/score` takes queries and what they are scored with."""


class _VllmRequest(Wire):
    model: str | None = None
    """Name of a model of this service. Null or absent: the default model."""
    truncate_prompt_tokens: Literal[-1] | None = None
    """-1 cuts a pair at the model's window. Null or absent: a longer pair is refused. No other length is supported."""
    truncation_side: Literal["right"] | None = None
    """Only `right`: what is cut is the end."""
    max_tokens_per_doc: Annotated[int, Field(ge=0)] = 0
    """A longer document is cut there. 0: at the model's window only."""
    max_tokens_per_query: Literal[0] = 0
    """Not supported."""
    use_activation: bool | None = None
    """False makes scores logits rather than probabilities."""
    priority: Literal[0] = 0
    """Not supported."""
    instruction: None = None
    """Not supported: the prompt is the model's own."""
    chat_template_kwargs: None = None
    """Not supported."""


class VllmRerankRequest(_VllmRequest):
    """Body of vLLM's `/rerank`. Fields it does not have are ignored, as there."""

    query: QueryText
    documents: _OneOrMany
    """A text or several."""
    top_n: Annotated[int, Field(ge=0)] = 0
    """How many results to return; 0: all."""


class VllmScoreRequest(_VllmRequest):
    """Body of vLLM's `/score`: one query with several texts, or as many queries as texts."""

    text_1: _Queries | None = None
    text_2: _OneOrMany | None = None
    queries: _Queries | None = None
    documents: _OneOrMany | None = None
    items: _OneOrMany | None = None
    data_1: _Queries | None = None
    data_2: _OneOrMany | None = None


class VllmDocument(Wire):
    """A document that came back."""

    text: str


class VllmResult(Wire):
    """One document's place."""

    index: int
    document: VllmDocument
    relevance_score: float


class VllmUsage(Wire):
    """Tokens of all pairs, as the model saw them."""

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
    """One pair's score."""

    index: int
    object: Literal["score"] = "score"
    score: float


class VllmScoreResponse(Wire):
    """Scores in the request's order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: tuple[VllmScore, ...]
    usage: VllmUsage


class VllmErrorInfo(Wire):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: int


class VllmError(Wire):
    """vLLM's error body."""

    error: VllmErrorInfo


def _read_rerank(body: Body, limits: LimitsConfig) -> Call:
    request = read(VllmRerankRequest, body, limits, ignores_unknown=True)
    check_num_documents("documents", len(request.documents), limits)

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

    question = Question(request.query, request.documents)
    return _call(request, (question,), reply, passage_at=lambda index: place_of(body, "documents", index))


def _read_score(body: Body, limits: LimitsConfig) -> Call:
    request = read(VllmScoreRequest, body, limits, ignores_unknown=True)
    query_field, text_field = _form(request)
    questions = _questions(getattr(request, query_field), getattr(request, text_field), query_field, text_field, limits)

    def reply(rankings: Sequence[Ranked], model_id: str) -> VllmScoreResponse:
        scores: dict[int, float] = {}
        for question, ranked in zip(questions, rankings, strict=True):
            scores.update(zip(question.indices or (), ranked.logits, strict=True))
        num_tokens = sum(ranked.num_tokens for ranked in rankings)
        return VllmScoreResponse(
            id=f"score-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model_id,
            data=tuple(VllmScore(index=index, score=_score(request, scores[index])) for index in range(len(scores))),
            usage=VllmUsage(prompt_tokens=num_tokens, total_tokens=num_tokens, completion_tokens=0),
        )

    num_queries = len(getattr(request, query_field))
    return _call(
        request,
        questions,
        reply,
        passage_at=lambda index: place_of(body, text_field, index),
        query_at=lambda index: place_of(body, query_field, index if num_queries > 1 else 0),
    )


def _form(request: VllmScoreRequest) -> tuple[str, str]:
    """The fields of queries and of texts."""
    forms = [form for form in _FORMS if all(getattr(request, field) is not None for field in form)]
    if len(forms) != 1:
        known = ", ".join(" with ".join(form) for form in _FORMS)
        raise invalid((), f"The body needs queries and texts to score, in one of these forms: {known}", "missing")
    return forms[0]


def _questions(
    queries: Sequence[str], texts: Sequence[str], query_field: str, text_field: str, limits: LimitsConfig
) -> tuple[Question, ...]:
    """One for each distinct query, with the places of its pairs in the request."""
    check_num_documents(text_field, len(texts), limits)
    if len(queries) not in (1, len(texts)):
        message = f"{query_field} has {len(queries)} entries and {text_field} {len(texts)}; send one query, or as many"
        raise invalid((query_field,), message, "lengths_differ")
    places: dict[str, list[int]] = {}
    for index in range(len(texts)):
        places.setdefault(queries[0 if len(queries) == 1 else index], []).append(index)
    return tuple(Question(query, [texts[i] for i in indices], indices) for query, indices in places.items())


def _call(request: _VllmRequest, questions: tuple[Question, ...], reply: Any, **places: Callable[[int], Loc]) -> Call:
    truncate = Truncate.NONE if request.truncate_prompt_tokens is None else Truncate.END
    fitting = Fitting(truncate, request.max_tokens_per_doc or None)
    return Call(request.model, questions, fitting, reply, **places, way_out="truncate_prompt_tokens: -1")


def _score(request: _VllmRequest, logit: float) -> float:
    return logit if request.use_activation is False else probability(logit)


_TYPES = {
    HTTPStatus.BAD_REQUEST: "BadRequestError",
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalServerError",
}
"""vLLM's names; its other errors carry the status's own words."""


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
"""That no other dialect of the shared paths has."""


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
)
