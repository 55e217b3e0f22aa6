"""Checks the parts of a configuration file that Serve reads: its top-level keys, applications and `http_options`.

Importing this module imports Ray, which takes seconds. `config` checks the settings of the service itself.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from rerank_service.config import readable_problems, unknown_setting
from rerank_service.errors import ConfigError

__all__ = ["read_serve_file"]

_MAX_PORT = 65_535


def read_serve_file(path: str) -> ServeDeploySchema:
    """Reads a file that `load_config` accepts. Raises `ConfigError` with one line per problem."""
    document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    try:
        parsed = ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        raise ConfigError(readable_problems(error)) from None
    if problems := [*_unknown_keys(document), *_http_problems(parsed.http_options)]:
        raise ConfigError("\n".join(problems))
    return parsed


def _unknown_keys(document: Mapping[str, Any]) -> Iterator[str]:
    """Problems with unknown keys. Serve ignores such keys, so a misspelt setting would have no effect."""
    yield from _unknown_in(document, ServeDeploySchema, "")
    yield from _unknown_in(document.get("http_options", {}), HTTPOptionsSchema, "http_options.")
    for index, application in enumerate(document["applications"]):
        yield from _unknown_in(application, ServeApplicationSchema, f"applications[{index}].")


def _unknown_in(section: Mapping[str, Any], schema: type[BaseModel], place: str) -> Iterator[str]:
    for name in map(str, section):
        if name not in schema.model_fields and not name.startswith("x-"):  # x-: a place for YAML anchors, as in Compose
            yield f"{place}{name}: {unknown_setting(name, schema.model_fields)}"


def _http_problems(http: HTTPOptionsSchema) -> Iterator[str]:
    if not 1 <= http.port <= _MAX_PORT:
        yield f"http_options.port: must be from 1 to {_MAX_PORT:,}, not {http.port}"
    limit_s = http.request_timeout_s
    if limit_s is not None and not (math.isfinite(limit_s) and limit_s >= 0):
        yield f"http_options.request_timeout_s: must be a finite number of seconds, or null for no limit, not {limit_s}"
