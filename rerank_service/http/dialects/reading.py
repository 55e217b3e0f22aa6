"""Parsing and validation shared by the dialects: texts, limits, and error messages that name the dialect's own fields.

This module must not depend on any particular dialect. Messages never repeat the user's text.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from rerank_service.config import LimitsConfig, plain_message, without_echoes
from rerank_service.errors import FieldProblem, InvalidRequest, Loc, dotted
from rerank_service.http.dialects.call import Body

__all__ = [
    "Documents",
    "JsonNumber",
    "QueryText",
    "TopN",
    "Wire",
    "field_message",
    "field_problems",
    "invalid",
    "place_of",
    "read",
    "text_of",
]

_MAX_PROBLEMS = 10
"""Maximum number of problems in one error, because a request can have one problem per passage."""
_MAX_FIELD_CHARACTERS = 80
"""Maximum length of a field's name in error messages, because the name comes from the client."""


class Wire(BaseModel):
    """Base class of all bodies. `read` decides whether unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, regex_engine="python-re", protected_namespaces=()
    )


_WireT = TypeVar("_WireT", bound=Wire)

QueryText = Annotated[str, Field(pattern=r"\S")]
"""A query, which must not be blank."""

TopN = Annotated[int, Field(ge=1)]


def _reject_non_numbers(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


JsonNumber = BeforeValidator(_reject_non_numbers)
"""A JSON number, such as 16 or 16.0; not "16" or true."""


def text_of(document: Any) -> Any:
    """The text of a document, which is a string or an object with `text`. Raises an error that pydantic reports."""
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise PydanticCustomError("document_type", 'must be a string or {"text": "..."}')
    return text


_TEXT_OBJECT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
_DocumentText = Annotated[
    str, BeforeValidator(text_of), WithJsonSchema({"anyOf": [{"type": "string"}, _TEXT_OBJECT]}, mode="validation")
]

Documents = Annotated[tuple[_DocumentText, ...], Field(min_length=1)]
"""Texts to rank. Objects with `text` are accepted and replaced by their text."""


def read(request: type[_WireT], body: Body, limits: LimitsConfig, *, ignores_unknown: bool = False) -> _WireT:
    """Reads the body as a `request`. Raises `InvalidRequest` with the first ten problems.

    Unknown fields are ignored if the configuration says so, or with `ignores_unknown`, for vendors whose own servers
    ignore unknown fields.
    """
    extra = "ignore" if ignores_unknown or limits.unknown_fields == "ignore" else "forbid"

    def message(code: str, loc: Loc, detail: ErrorDetails) -> str:
        field = dotted(loc[1:])
        if code == "extra_forbidden":
            return f"{field} is not a field of this API; accepted here: {', '.join(request.model_fields)}"
        return field_message(code, field, detail)

    try:
        return request.model_validate(body.fields, extra=extra)  # type: ignore[arg-type]
    except ValidationError as error:
        raise InvalidRequest(field_problems(error, message)) from None


def invalid(loc: Loc, message: str, code: str) -> InvalidRequest:
    """An error with one problem, at `loc` in the body."""
    return InvalidRequest([FieldProblem(("body", *loc), message, code)])


def place_of(body: Body, field: str, index: int) -> Loc:
    """Path of entry `index` in a field that takes one text or a list of texts."""
    return (field, index) if isinstance(body.fields[field], list) else (field,)


def field_problems(error: ValidationError, message: Callable[[str, Loc, ErrorDetails], str]) -> list[FieldProblem]:
    """The first ten problems of `error`. `message` forms a sentence from a code, a path that starts with `body`, and
    the details."""
    details = without_echoes(error.errors(include_url=False, include_input=False))
    problems = []
    for detail in details[:_MAX_PROBLEMS]:
        path = (part[:_MAX_FIELD_CHARACTERS] if isinstance(part, str) else part for part in detail["loc"])
        loc, code = ("body", *path), detail["type"]
        problems.append(FieldProblem(loc, message(code, loc, detail), code))
    if len(details) > _MAX_PROBLEMS:
        more = len(details) - _MAX_PROBLEMS
        problems.append(FieldProblem(("body",), f"and {more} more problems", "too_many_problems"))
    return problems


def field_message(code: str, field: str, detail: ErrorDetails) -> str:
    """Describes the problem with `field`, in words that suit every dialect."""
    match code:
        case "missing":
            return f"{field} is required"
        case "string_pattern_mismatch":
            return f"{field} is blank; send a text"
        case "too_short":
            return f"{field} is empty; send at least one text"
        case "tuple_type":
            return f"{field} must be a list"
        case "document_type":
            return f"{field} {detail['msg']}"
    text = plain_message(detail["msg"])
    return f"{field} {text}" if text.startswith("must ") else f"{field}: {text}"
