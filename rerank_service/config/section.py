"""Base class of all configuration sections, and readable messages for validation errors. The API uses these messages
too."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from rerank_service.errors import dotted

__all__ = ["Section", "plain_message", "readable_problems", "unknown_setting", "without_echoes"]

_MESSAGES = {
    "missing": "required, but missing",
    "model_type": "must be a mapping of settings",
}


class Section(BaseModel):
    """An immutable group of settings. Unknown keys, infinite values and NaN are errors. Attribute docstrings document
    the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def readable_problems(error: ValidationError, root: type[BaseModel] | None = None) -> str:
    """Formats each problem as a line with the setting, the problem and the invalid value. If `root`, the validated
    class, is given, the line for an unknown setting suggests a known setting with a similar name."""
    lines = []
    for problem in without_echoes(error.errors(include_url=False)):
        kind, value = problem["type"], problem["input"]
        message = _MESSAGES.get(kind, plain_message(problem["msg"]))
        if kind == "extra_forbidden":
            *parents, name = problem["loc"]
            message = unknown_setting(str(name), _settings_at(root, parents))
        if kind != "extra_forbidden" and not isinstance(value, dict | list | tuple | BaseModel):
            message += f", not {value!r}"
        lines.append(f"{dotted(problem['loc']) or 'configuration'}: {message}")
    return "\n".join(lines)


def plain_message(message: str) -> str:
    """Rewrites a message of pydantic to continue a sentence that starts with the field. "Input should be greater than
    0" becomes "must be greater than 0", and "Value error, " before a validator's text is removed."""
    text = re.sub(r"^\w+ should", "must", message.removeprefix("Value error, "))
    return text.replace(" after validation", "")


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """The message for an unknown setting. It suggests a known setting with a similar name, if there is one."""
    close = get_close_matches(name, list(known), n=1)
    return f"unknown setting; did you mean `{close[0]}`?" if close else "unknown setting"


def _settings_at(section: Any, path: Iterable[str | int]) -> Iterable[str]:
    """Names of the settings at `path` below `section`; none if the path leaves the known sections."""
    for part in path:
        if isinstance(part, str) and section is not None:
            field = section.model_fields.get(part)
            section = field and _section_in(field.annotation)
    return () if section is None else section.model_fields


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section in an annotation such as `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def without_echoes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Drops each "too short" error that only results from invalid entries, because pydantic counts only valid
    entries."""
    owners = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    return [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in owners]
