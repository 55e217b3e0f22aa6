"""The wire format of `/v1/ranking`, and how a body is validated against it.

Bodies are parsed from bytes in one pass, without a detour through Python objects. What is wrong comes out
as `InvalidRequest`, which names the field, the limit and the way out, and never repeats the user's text.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from rerank_service.config import LimitsConfig, without_echoes
from rerank_service.errors import FieldProblem, InvalidRequest, Loc, dotted
from rerank_service.messages import DEFAULT_OVERLAP_TOKENS, MIN_WINDOW_TOKENS

__all__ = [
    "ErrorDetail",
    "ErrorEnvelope",
    "Passage",
    "Query",
    "Ranking",
    "RankingRequest",
    "RankingResponse",
    "Usage",
    "WindowOptions",
    "field_problems",
    "parse_ranking_request",
]

_MAX_PROBLEMS = 10
"""Problems an error names; a request can have one per passage."""


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, regex_engine="python-re")


class Query(_Wire):
    """What is asked."""

    text: Annotated[str, Field(pattern=r"\S")]
    """The query; not blank."""


class Passage(_Wire):
    """A candidate."""

    text: str
    """The passage; may be empty."""


def _is_number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


_A_NUMBER = BeforeValidator(_is_number)
"""As JSON has it: 16 and 16.0 are one, "16" and true are none."""


class WindowOptions(_Wire):
    """How a passage that does not fit beside the query is ranked: in overlapping windows, the best of which counts."""

    max_per_passage: Annotated[int, Field(ge=1), _A_NUMBER] | None = None
    """What stands behind that many windows is cut, or refused under `truncate: NONE`. Null or absent: as many as the
    service allows."""

    tokens: Annotated[int, Field(ge=MIN_WINDOW_TOKENS), _A_NUMBER] | None = None
    """Tokens of the passage in a window. Null or absent: as many as fit."""

    overlap_tokens: Annotated[int, Field(ge=0), _A_NUMBER] = DEFAULT_OVERLAP_TOKENS
    """Tokens that a window has in common with the one before, at most half of them."""


class RankingRequest(_Wire):
    """A query and the passages to rank for it."""

    model: str | None = None
    """e.g. `nvidia/llama-3.2-nv-rerankqa-1b-v2`, `nvidia/nv-rerankqa-mistral-4b-v3`. Null or absent: the
    service's default model."""

    query: Query
    passages: Annotated[tuple[Passage, ...], Field(min_length=1)]
    """Candidate passages."""

    truncate: Literal["NONE", "END"] | None = "END"
    """What to do with a pair longer than the model's window: `END` cuts it at the end, `NONE` refuses it."""

    passage_windows: WindowOptions | None = None
    """An extension of NVIDIA's API: rank long passages in windows. Null or absent: `truncate` decides alone."""


class Ranking(_Wire):
    """One passage's place."""

    index: int
    """Original index in the request `passages` array."""
    logit: float
    """Raw cross-encoder relevance logit (higher = more relevant)."""


class Usage(_Wire):
    """Tokens of the request."""

    prompt_tokens: int
    """Tokens of all pairs, templated and truncated."""
    total_tokens: int
    """The same: a reranker writes none."""


class RankingResponse(_Wire):
    """Every passage, most relevant first."""

    rankings: tuple[Ranking, ...]
    usage: Usage


class ErrorDetail(_Wire):
    """One thing that is wrong."""

    loc: tuple[str | int, ...]
    """Where: `body`, `header` or `path`, then the field."""
    msg: str
    """What, and what to do."""
    type: str
    """A code for programs."""


class ErrorEnvelope(_Wire):
    """The body of every error."""

    object: Literal["error"] = "error"
    message: str
    """One sentence for a person."""
    detail: tuple[ErrorDetail, ...]
    """The problems one by one."""
    type: str
    """Kind of error, for instance `invalid_request_error`."""


def parse_ranking_request(body: bytes, limits: LimitsConfig) -> RankingRequest:
    """Validates a body; raises `InvalidRequest` with every problem, up to ten."""
    try:
        extra: Literal["forbid", "ignore"] = "forbid" if limits.unknown_fields == "reject" else "ignore"
        request = RankingRequest.model_validate_json(body, extra=extra)
    except ValidationError as error:
        raise InvalidRequest(field_problems(error, _message)) from None
    if len(request.passages) > limits.max_passages:
        raise InvalidRequest([_too_many_passages(len(request.passages), limits.max_passages)])
    if request.passage_windows:
        _check_windows(request.passage_windows, limits.max_windows_per_passage)
    return request


def _check_windows(wanted: WindowOptions, limit: int) -> None:
    if limit == 1:
        message = "passage_windows: this service ranks no passage in windows; leave it out"
        raise InvalidRequest([FieldProblem(("body", "passage_windows"), message, "windows_turned_off")])
    if (wanted.max_per_passage or 1) > limit:
        message = f"passage_windows.max_per_passage is {wanted.max_per_passage}; at most {limit} are allowed"
        raise InvalidRequest(
            [FieldProblem(("body", "passage_windows", "max_per_passage"), message, "too_many_windows")]
        )


def _too_many_passages(count: int, limit: int) -> FieldProblem:
    message = f"passages has {count} entries; at most {limit} are allowed, so split the request"
    return FieldProblem(("body", "passages"), message, "too_many_passages")


def field_problems(error: ValidationError, message: Callable[[str, Loc, ErrorDetails], str]) -> list[FieldProblem]:
    """Up to ten problems; `message` has a code, a place that starts with `body`, and pydantic's details."""
    details = without_echoes(error.errors(include_url=False, include_input=False))
    problems = [_problem(detail, message) for detail in details[:_MAX_PROBLEMS]]
    if len(details) > _MAX_PROBLEMS:
        more = len(details) - _MAX_PROBLEMS
        problems.append(FieldProblem(("body",), f"and {more} more problems of this kind", "too_many_problems"))
    return problems


def _problem(detail: ErrorDetails, message: Callable[[str, Loc, ErrorDetails], str]) -> FieldProblem:
    loc = ("body", *(_short(part) for part in detail["loc"]))
    code = detail["type"]
    return FieldProblem(loc, message(code, loc, detail), code)


def _message(code: str, loc: Loc, detail: ErrorDetails) -> str:
    field = dotted(loc[1:])
    if code == "json_invalid":
        return f"The body is not valid JSON: {detail['msg'].removeprefix('Invalid JSON: ')}"
    if code == "model_type" and not field:
        return "The body must be a JSON object with query and passages"
    if code == "model_type":
        return f'{field} must be an object: {{"text": "..."}}'
    if code == "missing":
        return f"{field} is required"
    if code == "extra_forbidden":
        accepted = ", ".join(_accepted_beside(loc))
        return f"{field} is not a field of this API; accepted here: {accepted}"
    if code == "string_pattern_mismatch":
        return f"{field} is blank; send the question to rank for"
    if code == "too_short":
        return f"{field} is empty; send at least one passage"
    return f"{field}: {detail['msg']}"


def _accepted_beside(loc: Loc) -> list[str]:
    parts: dict[str, type[_Wire]] = {"query": Query, "passages": Passage, "passage_windows": WindowOptions}
    owner = parts.get(str(loc[1])) if len(loc) > 2 else RankingRequest
    return list((owner or RankingRequest).model_fields)


def _short(part: str | int) -> str | int:
    return part[:80] if isinstance(part, str) else part
