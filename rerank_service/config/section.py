"""Base class of all configuration sections, and readable messages for validation errors, which the API uses too."""

import re

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from rerank_service.errors import dotted

__all__ = ["Section", "plain_message", "readable_problems", "without_echoes"]

_MESSAGES = {
    "extra_forbidden": "unknown setting",
    "missing": "required, but missing",
    "model_type": "must be a mapping of settings",
}


class Section(BaseModel):
    """An immutable group of settings. Unknown keys are errors, and attribute docstrings document the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def readable_problems(error: ValidationError) -> str:
    """One line per problem: the setting, the problem, and the invalid value."""
    lines = []
    for problem in without_echoes(error.errors(include_url=False)):
        kind, value = problem["type"], problem["input"]
        message = _MESSAGES.get(kind, plain_message(problem["msg"]))
        if kind != "extra_forbidden" and not isinstance(value, dict | list | tuple | BaseModel):
            message += f", not {value!r}"
        lines.append(f"{dotted(problem['loc']) or 'configuration'}: {message}")
    return "\n".join(lines)


def plain_message(message: str) -> str:
    """Rewrites a message of pydantic, such as "Input should be greater than 0" or "Value error, the text of a
    validator", to continue a sentence that starts with the field: "must be greater than 0"."""
    text = re.sub(r"^\w+ should", "must", message.removeprefix("Value error, "))
    return text.replace(" after validation", "")


def without_echoes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Drops each "too short" error that only results from invalid entries, because pydantic counts only valid ones."""
    owners = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    return [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in owners]
