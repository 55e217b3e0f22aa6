"""NVIDIA's own API: `/v1/ranking` and its hosted URLs.

Bodies are parsed from bytes in one pass, without intermediate Python objects; only bodies with null fields or content
parts need a second pass. Errors name the field, the limit and the remedy, and never repeat the user's text.
"""

from collections.abc import Container, Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from rerank_service.config import Probability
from rerank_service.errors import Loc, RerankError, dotted
from rerank_service.http.dialects.call import (
    EXAMPLE_QUERY,
    EXAMPLE_TEXTS,
    Body,
    Dialect,
    RankingCall,
    RankingQuery,
    ReadingRules,
    Refusal,
)
from rerank_service.http.dialects.explanations import (
    ExplainOptions,
    ExplanationEntry,
    checked_top_n,
    explanation_entry,
)
from rerank_service.http.dialects.reading import (
    JsonNumber,
    MinProbability,
    QueryText,
    Wire,
    field_message,
    ignored_fields,
    invalid,
    text_of,
)
from rerank_service.messages import (
    DEFAULT_OVERLAP_TOKENS,
    MIN_WINDOW_TOKENS,
    Fitting,
    PassageWindows,
    Ranked,
    Truncate,
)

__all__ = ["NIM", "ErrorDetail", "ErrorEnvelope", "RankingRequest", "RankingResponse"]


class Query(Wire):
    """The query for which passages are ranked."""

    text: QueryText
    """Text of the query; must not be blank."""


class Passage(Wire):
    """A candidate passage."""

    text: str
    """Text of the passage; may be empty."""


class WindowOptions(Wire):
    """Options for passages that are too long for the model's window. Each passage is ranked in overlapping windows, by
    the logit of its best window."""

    max_per_passage: Annotated[int, Field(ge=1), JsonNumber] | None = None
    """Maximum number of windows per passage. Text beyond them is truncated, or the request is refused under
    `truncate: NONE`. Null or absent: the service's own limit."""

    tokens: Annotated[int, Field(ge=MIN_WINDOW_TOKENS), JsonNumber] | None = None
    """Passage tokens per window. Null or absent: as many as fit next to the query."""

    overlap_tokens: Annotated[int, Field(ge=0), JsonNumber] | None = DEFAULT_OVERLAP_TOKENS
    """Tokens shared by two consecutive windows; limited to half a window. Null: the default."""


class RankingRequest(Wire):
    """A query and the passages to rank for it."""

    model: str | None = None
    """e.g. `nvidia/llama-3.2-nv-rerankqa-1b-v2`, `nvidia/nv-rerankqa-mistral-4b-v3`. Null or absent: the
    service's default model."""

    query: Query
    passages: Annotated[tuple[Passage, ...], Field(min_length=1)]
    """Candidate passages."""

    truncate: Literal["NONE", "END"] | None = None
    """How to handle a query and passage that together exceed the model's window: `END` truncates them, `NONE` refuses
    the request."""

    passage_windows: WindowOptions | None = None
    """An extension of NVIDIA's API: ranks long passages in windows. Null or absent: long passages are handled as
    `truncate` says."""

    explain: ExplainOptions | None = None
    """An extension of NVIDIA's API: explains the best passages in `explanations`. Null or absent: no explanations."""

    min_probability: MinProbability | None = None
    """An extension of NVIDIA's API: leaves out passages with a lower probability. Requires a calibrated model. Null or
    absent: returns all passages."""


class PassageLogit(Wire):
    """A passage's relevance to the query."""

    __qualname__ = "Ranking"  # the schema's name in the published document
    model_config = ConfigDict(title="Ranking")

    index: int
    """Original index in the request `passages` array."""
    logit: float
    """Raw relevance logit (higher = more relevant)."""


class Usage(Wire):
    """Tokens of the request."""

    prompt_tokens: int
    """Tokens of all query-passage pairs, with the model's prompt, after truncation; pairs scored for explanations
    included."""
    total_tokens: int
    """Same as `prompt_tokens`: a reranker generates no tokens."""


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]  # null stands for an absent field


class RankingResponse(Wire):
    """All passages, most relevant first."""

    rankings: tuple[PassageLogit, ...]
    usage: Usage
    explanations: Annotated[
        tuple[ExplanationEntry, ...] | SkipJsonSchema[None], Field(json_schema_extra=_without_default)
    ] = None
    """The explained passages, most relevant first. Absent unless the request has `explain`."""


class ErrorDetail(Wire):
    """One problem with the request."""

    loc: tuple[str | int, ...]
    """Location: `body`, `header` or `path`, then the path to the field."""
    msg: str
    """What is wrong and how to fix it."""
    type: str
    """Machine-readable code."""


class ErrorEnvelope(Wire):
    """The body of every error."""

    object: Literal["error"] = "error"
    message: str
    """Human-readable summary."""
    detail: tuple[ErrorDetail, ...]
    """The individual problems."""
    type: str
    """Kind of error, for instance `invalid_request_error`."""


def _read(body: Body, rules: ReadingRules) -> RankingCall:
    in_parts: Container[int] = ()
    try:
        request = RankingRequest.model_validate_json(body.raw, extra="forbid")
    except ValidationError as error:
        is_strict = rules.limits.unknown_fields == "reject"
        if _has_nulls_or_parts(error):
            request, in_parts = _read_second_time(body, is_strict=is_strict)
        else:
            body.ignored_fields = ignored_fields(error, _message, is_strict=is_strict)
            request = RankingRequest.model_validate_json(body.raw, extra="ignore")
    wanted = request.passage_windows
    most = rules.limits.max_windows_per_passage
    windows = None if wanted is None else _windows(wanted, most)
    explain = request.explain
    return RankingCall(
        request.model,
        (RankingQuery(request.query.text, list(map(attrgetter("text"), request.passages))),),
        Fitting(Truncate(request.truncate or rules.truncate or Truncate.END), windows=windows),
        _reply,
        passage_at=lambda index: ("passages", index) if index in in_parts else ("passages", index, "text"),
        query_at=lambda _: ("query", "text"),
        way_out="truncate: END",
        more_windows="passage_windows.max_per_passage" if windows and windows.max_per_passage < most else "",
        explain_top_n=None if explain is None else checked_top_n(explain, rules.limits.max_explained_passages),
        min_probability=request.min_probability,
    )


def _has_nulls_or_parts(error: ValidationError) -> bool:
    details = error.errors(include_url=False, include_context=False)
    return any(one["loc"] and (one["input"] is None or one["loc"][-1] == "content") for one in details)


def _read_second_time(body: Body, *, is_strict: bool) -> tuple[RankingRequest, Container[int]]:
    """Reads a body without its null fields, and with the text of content parts. Also returns the indices of the
    passages that consist of parts. Raises `InvalidRequest`."""
    fields = {name: _without_nulls(value) for name, value in body.fields.items()}
    in_parts = set[int]()
    if isinstance(passages := fields.get("passages"), list):
        fields["passages"] = passages = list(map(_without_nulls, passages))
        in_parts = {index for index, passage in enumerate(passages) if _has_parts(passage)}
        for index in in_parts:
            passages[index] = _with_text(passages[index], index)
    try:
        return RankingRequest.model_validate(fields, extra="forbid"), in_parts
    except ValidationError as error:
        body.ignored_fields = ignored_fields(error, _message, is_strict=is_strict)
    return RankingRequest.model_validate(fields, extra="ignore"), in_parts


def _without_nulls(value: Any) -> Any:
    return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value


def _has_parts(passage: Any) -> bool:
    """Whether a passage has content parts instead of a text, as multimodal clients of vLLM send them."""
    is_candidate = isinstance(passage, dict) and "text" not in passage
    return is_candidate and isinstance(passage.get("content"), list) and bool(passage["content"])


def _with_text(passage: Mapping[str, Any], index: int) -> dict[str, Any]:
    try:
        text = text_of(passage)
    except PydanticCustomError as error:
        raise invalid(("passages", index), f"passages[{index}] {error.message()}", "document_type") from None
    return {name: value for name, value in passage.items() if name != "content"} | {"text": text}


def _windows(wanted: WindowOptions, limit: int) -> PassageWindows:
    if limit == 1:
        message = "passage_windows is turned off on this service; leave it out"
        raise invalid(("passage_windows",), message, "windows_turned_off")
    if (wanted.max_per_passage or 1) > limit:
        message = f"passage_windows.max_per_passage is {wanted.max_per_passage}; at most {limit} are allowed"
        raise invalid(("passage_windows", "max_per_passage"), message, "too_many_windows")
    overlap_tokens = DEFAULT_OVERLAP_TOKENS if wanted.overlap_tokens is None else wanted.overlap_tokens
    return PassageWindows(wanted.max_per_passage or limit, wanted.tokens, overlap_tokens)


_PARTS: dict[str, type[Wire]] = {
    "query": Query,
    "passages": Passage,
    "passage_windows": WindowOptions,
    "explain": ExplainOptions,
}


def _message(code: str, loc: Loc, detail: ErrorDetails) -> str:
    field = dotted(loc[1:])
    match code:
        case "json_invalid":
            return f"The body is not valid JSON: {detail['msg'].removeprefix('Invalid JSON: ')}"
        case "model_type" if not field:
            return "The body must be a JSON object with query and passages"
        case "model_type" if field == "passage_windows":
            return f"{field} must be an object with any of these fields: {', '.join(WindowOptions.model_fields)}"
        case "model_type" if field == "explain":
            return f'{field} must be an object: {{"top_n": 3}}'
        case "model_type":
            return f'{field} must be an object: {{"text": "..."}}'
        case "extra_forbidden":
            owner = _PARTS.get(str(loc[1]), RankingRequest) if len(loc) > 2 else RankingRequest
            return f"{field} is not a field of this API; accepted here: {', '.join(owner.model_fields)}"
        case "too_short":
            return f"{field} is empty; send at least one passage"
    return field_message(code, field, detail)


def _reply(rankings: Sequence[Ranked], _: str, __: Probability) -> RankingResponse:
    (ranked,) = rankings
    passages = []
    for index in ranked.order:
        passages.append(PassageLogit(index=index, logit=ranked.logits[index]))
    usage = Usage(prompt_tokens=ranked.num_tokens, total_tokens=ranked.num_tokens)
    if ranked.explanations is None:
        return RankingResponse(rankings=tuple(passages), usage=usage)
    explanations = tuple(map(explanation_entry, ranked.explanations))
    return RankingResponse(rankings=tuple(passages), usage=usage, explanations=explanations)


def _refuse(error: RerankError) -> Refusal:
    detail = tuple(ErrorDetail(loc=loc, msg=text, type=code) for loc, text, code in error.problems)
    return Refusal(error.http_status, ErrorEnvelope(message=error.message, detail=detail, type=error.category))


NIM = Dialect(
    name="nim",
    paths=("/v1/ranking", "/v1/retrieval/nvidia/reranking", "/v1/retrieval/nvidia/{slug}/reranking"),
    request=RankingRequest,
    response=RankingResponse,
    error=ErrorEnvelope,
    read=_read,
    refuse=_refuse,
    example={
        "query": {"text": EXAMPLE_QUERY},
        "passages": [{"text": text} for text in EXAMPLE_TEXTS],
        "truncate": "END",
    },
)
