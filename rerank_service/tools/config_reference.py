"""Markdown reference of all settings, generated from the JSON schema of the configuration.

`python -m rerank_service.tools.config_reference` prints the reference, and the documentation site includes it. Settings
are therefore described only in their attribute docstrings.
"""

import json
from collections.abc import Mapping
from typing import Any

from rerank_service.config import RerankConfig

__all__ = ["config_reference"]

_Schema = Mapping[str, Any]

_BOUNDS = {
    "exclusiveMinimum": "greater than",
    "minimum": "at least",
    "exclusiveMaximum": "less than",
    "maximum": "at most",
}


def config_reference(heading_level: int = 2) -> str:
    """Markdown with one heading per section, at the given level and in the order of the configuration.

    A section that occurs twice, such as the replicas of models and pools, is described where it occurs first.
    """
    schema = RerankConfig.model_json_schema()
    definitions = schema["$defs"]
    paragraphs: list[str] = []
    described_at: dict[str, str] = {}

    def describe(section: _Schema, path: str) -> None:
        name = section["title"]
        paragraphs.append(f"{'#' * heading_level} {f'`{path}`' if path else 'Top level'}")
        if name in described_at:
            paragraphs.append(f"The same settings as in `{described_at[name]}`.")
            return
        described_at[name] = path
        paragraphs.append(_one_line(section["description"]))
        nested = []
        for key, setting in section["properties"].items():
            child = _section_of(setting, definitions)
            facts = [_type(setting, definitions)]
            if key in section.get("required", []):
                facts.append("required")
            elif child is None or setting["default"] is None:
                facts.append(f"default `{json.dumps(setting['default'])}`")
            paragraphs.append(f"- **`{key}`** ({', '.join(facts)})  \n  {_one_line(setting['description'])}")
            if child is not None:
                suffix = {"array": "[]", "object": ".*"}.get(setting.get("type", ""), "")
                nested.append((child, f"{path}.{key}{suffix}".removeprefix(".")))
        for child, child_path in nested:
            describe(child, child_path)

    describe(schema, "")
    return "\n\n".join(paragraphs) + "\n"


def _section_of(setting: _Schema, definitions: _Schema) -> _Schema | None:
    """Schema of the section that a setting contains: directly, as an alternative to null, in a list, or in a
    mapping."""
    values = setting.get("additionalProperties") or {}
    for candidate in (setting, setting.get("items", {}), values, *setting.get("anyOf", [])):
        target: _Schema = definitions.get(candidate.get("$ref", "").rpartition("/")[2], {})
        if "properties" in target:
            return target
    return None


def _type(setting: _Schema, definitions: _Schema) -> str:
    """Type of a setting in words, with its bounds."""
    if "anyOf" in setting:
        return " or ".join(_type(one, definitions) for one in setting["anyOf"])
    if "$ref" in setting:
        target = definitions[setting["$ref"].rpartition("/")[2]]
        return "section" if "properties" in target else _type(target, definitions)
    if "enum" in setting:
        return f"one of {', '.join(f'`{value}`' for value in setting['enum'])}"
    if setting["type"] == "array":
        return f"list of: {_type(setting['items'], definitions)}"
    if setting["type"] == "object":
        return f"mapping from string to {_type(setting['additionalProperties'], definitions)}"
    bounds = [f"{words} {setting[bound]:g}" for bound, words in _BOUNDS.items() if bound in setting]
    return " ".join([setting["type"], " and ".join(bounds)]).strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    print(config_reference(), end="")  # noqa: T201 - a command
