"""Base class of all configuration sections, and readable messages for validation errors."""

import re

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from rerank_service.errors import dotted

__all__ = ["Section", "readable_problems", "without_echoes"]

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
        # pydantic's own messages look like "Input should be greater than 0" and "Value error, the text of a validator".
        text = re.sub(r"^\w+ should", "must", problem["msg"].removeprefix("Value error, "))
        message = _MESSAGES.get(kind, text.replace(" after validation", ""))
        if kind != "extra_forbidden" and not isinstance(value, dict | list | tuple | BaseModel):
            message += f", not {value!r}"
        lines.append(f"{dotted(problem['loc']) or 'configuration'}: {message}")
    return "\n".join(lines)


def without_echoes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Drops each "too short" error that only results from invalid entries, because pydantic counts only valid ones."""
    owners = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    return [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in owners]
