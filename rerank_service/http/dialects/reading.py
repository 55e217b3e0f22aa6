"""What the dialects' requests have in common: texts, limits, and messages that name the dialect's own fields.

Knows no dialect. Messages never repeat the user's text.
"""

from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from rerank_service.config import LimitsConfig
from rerank_service.errors import FieldProblem, InvalidRequest, Loc, dotted
from rerank_service.http.dialects.call import Body
from rerank_service.http.dialects.nim_schema import field_problems

__all__ = ["Documents", "QueryText", "TopN", "Wire", "check_num_documents", "invalid", "place_of", "read", "text_of"]


class Wire(BaseModel):
    """Base of the dialects' bodies. Fields that a dialect does not have are dealt with in `read`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, regex_engine="python-re", protected_namespaces=()
    )


_WireT = TypeVar("_WireT", bound=Wire)

QueryText = Annotated[str, Field(pattern=r"\S")]
"""Not blank."""

TopN = Annotated[int, Field(ge=1)]


def text_of(document: Any) -> Any:
    """A document's text, of a string or of an object with `text`; raises what pydantic takes for an error."""
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise PydanticCustomError("document_type", 'must be a string or {"text": "..."}')
    return text


_TEXT_OBJECT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
_DocumentText = Annotated[
    str, BeforeValidator(text_of), WithJsonSchema({"anyOf": [{"type": "string"}, _TEXT_OBJECT]}, mode="validation")
]

Documents = Annotated[tuple[_DocumentText, ...], Field(min_length=1)]
"""Texts; objects with `text` are accepted and come out as their texts."""


def read(request: type[_WireT], body: Body, limits: LimitsConfig, *, ignores_unknown: bool = False) -> _WireT:
    """The body as `request`. Raises `InvalidRequest` with every problem, up to ten.

    Unknown fields are ignored where the dialect's own servers do so, or the configuration says so.
    """
    extra = "ignore" if ignores_unknown or limits.unknown_fields == "ignore" else "forbid"
    try:
        return request.model_validate(body.fields, extra=extra)  # type: ignore[arg-type]
    except ValidationError as error:
        raise InvalidRequest(field_problems(error, partial(_message, request))) from None


def check_num_documents(field: str, count: int, limits: LimitsConfig) -> None:
    """Raises `InvalidRequest` if a request has more than `limits.max_passages`."""
    if count > limits.max_passages:
        raise invalid(
            (field,),
            f"{field} has {count} entries; at most {limits.max_passages} are allowed, so split the request",
            "too_many_passages",
        )


def invalid(loc: Loc, message: str, code: str) -> InvalidRequest:
    """One problem, at `loc` in the body."""
    return InvalidRequest([FieldProblem(("body", *loc), message, code)])


def place_of(body: Body, field: str, index: int) -> Loc:
    """Where entry `index` of a field is that takes one text or a list of them."""
    return (field, index) if isinstance(body.fields[field], list) else (field,)


def _message(request: type[BaseModel], code: str, loc: Loc, detail: ErrorDetails) -> str:
    field = dotted(loc[1:])
    if code == "missing":
        return f"{field} is required"
    if code == "extra_forbidden":
        return f"{field} is not a field of this API; accepted here: {', '.join(request.model_fields)}"
    if code == "string_pattern_mismatch":
        return f"{field} is blank; send the question to rank for"
    if code == "too_short":
        return f"{field} is empty; send at least one text"
    if code == "tuple_type":
        return f"{field} must be a list"
    if code == "document_type":
        return f"{field} {detail['msg']}"
    return f"{field}: {detail['msg']}"
