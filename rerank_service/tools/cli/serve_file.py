"""Checks the parts of a configuration that Serve reads: all keys outside the `args` of the applications.

Serve ignores unknown keys, so without this check, a misspelt key has no effect. Importing this module imports Ray,
which takes seconds. `rerank_service.config` checks the settings of the service itself.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve.config import AutoscalingPolicy
from ray.serve.schema import HTTPOptionsSchema, ServeDeploySchema

from rerank_service.config import readable_problems, unknown_setting
from rerank_service.errors import ConfigError
from rerank_service.tools.cli.serve_names import deployment_problems, import_problems

__all__ = ["read_serve_text"]

_MAX_PORT = 65_535
_HIDDEN_SECTIONS: dict[str, type[BaseModel]] = {"autoscaling_policy": AutoscalingPolicy}
"""Sections that Serve's schema declares as a plain dict."""
_Problems = Iterator[str]


def read_serve_text(text: str) -> ServeDeploySchema:
    """Reads a YAML text that `parse_serve_config` accepts. Raises `ConfigError` with one line per problem."""
    document = yaml.safe_load(text)
    problems = list(_unknown_in(document, ServeDeploySchema, ""))
    try:
        parsed = ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        invalid = readable_problems(error, ServeDeploySchema).splitlines()
        raise ConfigError("\n".join(dict.fromkeys([*problems, *invalid]))) from None
    for index, application in enumerate(document["applications"]):
        problems += import_problems(application, f"applications[{index}]")
        problems += deployment_problems(application, f"applications[{index}]")
    problems += _http_problems(parsed.http_options)
    if problems:
        raise ConfigError("\n".join(problems))
    return parsed


def _unknown_in(section: Mapping[Any, Any], schema: type[BaseModel], place: str) -> _Problems:
    """Unknown keys of a section and of the sections in it."""
    known = schema.model_fields
    for name, value in section.items():
        if name not in known:
            if not str(name).startswith("x-"):  # x-: a place for YAML anchors, as in Compose
                yield f"{place}{name}: {unknown_setting(str(name), known)}"
        elif name == "runtime_env":
            yield from _unknown_runtime(value, f"{place}{name}.")
        elif (inner := _HIDDEN_SECTIONS.get(name) or _section_in(known[name].annotation)) is not None:
            parts = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, part in parts:
                if isinstance(part, Mapping):
                    yield from _unknown_in(part, inner, f"{place}{name}{'' if index is None else f'[{index}]'}.")


def _unknown_runtime(value: Any, place: str) -> _Problems:
    for name in map(str, value if isinstance(value, Mapping) else ()):
        if name not in RuntimeEnv.known_fields:
            public = [field for field in RuntimeEnv.known_fields if not field.startswith("_")]
            yield f"{place}{name}: {unknown_setting(name, public)}"


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section in an annotation such as `Section | None` or `list[Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _http_problems(http: HTTPOptionsSchema) -> _Problems:
    if not 1 <= http.port <= _MAX_PORT:
        yield f"http_options.port: must be from 1 to {_MAX_PORT:,}, not {http.port}"
    limit_s = http.request_timeout_s
    if limit_s is not None and not (math.isfinite(limit_s) and limit_s >= 0):
        yield f"http_options.request_timeout_s: must be a finite number of seconds, or null for no limit, not {limit_s}"
