"""Parsing and validation shared by the dialects: texts, limits, and error messages that name the dialect's own fields.

This module must not depend on any particular dialect. Messages never repeat the user's text.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from rerank_service.config import LimitsConfig, plain_message, without_echoes
from rerank_service.errors import FieldProblem, InvalidRequest, Loc, dotted
from rerank_service.http.dialects.call import Body

__all__ = [
    "Documents",
    "JsonNumber",
    "MinProbability",
    "QueryOrObject",
    "QueryText",
    "ReturnedDocument",
    "TopN",
    "Wire",
    "field_message",
    "ignored_fields",
    "invalid",
    "place_of",
    "read",
    "returned",
    "text_of",
]

_MAX_PROBLEMS = 10
"""Maximum number of problems in one error, because a request can have one problem per passage."""
_MAX_FIELD_CHARACTERS = 80
"""Maximum length of a field's name in error messages, because the name comes from the client."""


_IMAGES = frozenset(("image", "images", "image_url"))
"""Fields in which multimodal clients send the image of a query or passage."""
_PART_TYPES = frozenset(("image_url", "image", "video_url", "video", "audio_url", "input_audio"))
"""Content parts that error messages name; other types are not repeated, because they come from the client."""


class Wire(BaseModel):
    """Base class of all bodies. `read` decides whether unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, regex_engine="python-re", protected_namespaces=()
    )


_WireT = TypeVar("_WireT", bound=Wire)

QueryText = Annotated[str, Field(pattern=r"\S")]
"""A query, which must not be blank."""

TopN = Annotated[int, Field(ge=1)]

MinProbability = Annotated[float, Field(ge=0, le=1, strict=True, allow_inf_nan=False)]
"""A JSON number between 0 and 1; not a string or true."""


def _reject_non_numbers(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


JsonNumber = BeforeValidator(_reject_non_numbers)
"""A JSON number, such as 16 or 16.0; not "16" or true."""


def text_of(document: Any) -> Any:
    """The text of a document, which is a string, an object with `text`, or an object with content parts of the type
    `text`; the parts' texts become lines. Raises an error that pydantic reports."""
    if isinstance(document, str):
        return document
    if isinstance(document, dict):
        text, parts = document.get("text"), document.get("content")
        if isinstance(text, str):
            return text
        if text is None and isinstance(parts, list) and parts:
            return "\n".join(map(_text_of_part, parts))
        if text is None and not _IMAGES.isdisjoint(document):
            raise PydanticCustomError("document_type", "is an image; this service ranks only text")
    raise PydanticCustomError("document_type", 'must be a string or {"text": "..."}')


def _text_of_part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    known = kind if isinstance(kind, str) and kind in _PART_TYPES else "no known type"
    raise PydanticCustomError("document_type", f"has a content part of {known}; this service ranks only text parts")


def returned(document: Any, *, as_string: bool = False) -> Any:
    """A document in the answer of Jina or Cohere: the object that was sent, or an object with the text that was sent;
    with `as_string`, the text."""
    if as_string:
        return text_of(document)
    return document if isinstance(document, dict) else {"text": document}


_TEXT_OBJECT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
_PARTS_OBJECT = {
    "type": "object",
    "required": ["content"],
    "properties": {
        "content": {
            "type": "array",
            "minItems": 1,
            "items": {**_TEXT_OBJECT, "required": ["type", "text"]},
        }
    },
}
_DocumentText = Annotated[
    str,
    BeforeValidator(text_of),
    WithJsonSchema({"anyOf": [{"type": "string"}, _TEXT_OBJECT, _PARTS_OBJECT]}, mode="validation"),
]

Documents = Annotated[tuple[_DocumentText, ...], Field(min_length=1)]
"""Texts to rank. Objects with `text` or with text parts in `content` are accepted and replaced by their text."""

ReturnedDocument = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]}, mode="serialization")
]
"""A document in an answer."""

QueryOrObject = Annotated[str, Field(pattern=r"\S"), BeforeValidator(text_of), WithJsonSchema({"type": "string"})]
"""A query, which must not be blank; an object with its text is accepted."""


def read(request: type[_WireT], body: Body, limits: LimitsConfig, *, ignores_unknown: bool = False) -> _WireT:
    """Reads the body as a `request`. Raises `InvalidRequest` with the first ten problems.

    Unknown fields are ignored if the configuration says so, or with `ignores_unknown`, for vendors whose own servers
    ignore unknown fields.
    """
    is_strict = limits.unknown_fields == "reject" and not ignores_unknown

    def message(code: str, loc: Loc, detail: ErrorDetails) -> str:
        field = dotted(loc[1:])
        if code == "extra_forbidden":
            return f"{field} is not a field of this API; accepted here: {', '.join(request.model_fields)}"
        return field_message(code, field, detail)

    try:
        return request.model_validate(body.fields, extra="forbid")
    except ValidationError as error:
        body.ignored_fields = ignored_fields(error, message, is_strict=is_strict)
    return request.model_validate(body.fields, extra="ignore")


def ignored_fields(error: ValidationError, message: "_Message", *, is_strict: bool) -> tuple[str, ...]:
    """Names of the unknown fields that caused `error`. Raises `InvalidRequest` if the body has any other problem, or
    if unknown fields are refused. An image is always refused: a ranking without it would be wrong."""
    details = without_echoes(error.errors(include_url=False, include_input=False))
    others: list[ErrorDetails] = []
    unknown: list[ErrorDetails] = []
    images: list[ErrorDetails] = []
    for detail in details:
        is_unknown = detail["type"] == "extra_forbidden"
        is_image = is_unknown and len(detail["loc"]) > 1 and detail["loc"][-1] in _IMAGES
        (images if is_image else unknown if is_unknown else others).append(detail)
    if images:
        raise InvalidRequest(_problems(images, _image_message))
    if is_strict or any(detail["type"] == "missing" for detail in others):  # a missing field may be misspelt
        raise InvalidRequest(_problems(others + unknown, message))
    if others:
        raise InvalidRequest(_problems(others, message))
    names = (".".join(part for part in detail["loc"] if isinstance(part, str)) for detail in unknown)
    return tuple(dict.fromkeys(names))


def invalid(loc: Loc, message: str, code: str) -> InvalidRequest:
    """An error with one problem, at `loc` in the body."""
    return InvalidRequest([FieldProblem(("body", *loc), message, code)])


def place_of(body: Body, field: str, index: int) -> Loc:
    """Path of entry `index` in a field that takes one text or a list of texts."""
    return (field, index) if isinstance(body.fields[field], list) else (field,)


_Message = Callable[[str, Loc, ErrorDetails], str]
"""Forms a sentence from a code, a path that starts with `body`, and the details of a problem."""


def _image_message(_: str, loc: Loc, __: ErrorDetails) -> str:
    return f"{dotted(loc[1:])} is an image; this service ranks only text"


def _problems(details: Sequence[ErrorDetails], message: _Message) -> list[FieldProblem]:
    """The first ten problems."""
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
        case "none_required":
            return f"{field} is not supported; leave it out"
        case "document_type":
            return f"{field} {detail['msg']}"
    text = plain_message(detail["msg"])
    return f"{field} {text}" if text.startswith("must ") else f"{field}: {text}"
