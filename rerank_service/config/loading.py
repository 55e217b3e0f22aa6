"""Loads the configuration from a Serve configuration file, or from the `args` of a Serve application."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rerank_service.config.application import RerankConfig
from rerank_service.config.model import ModelConfig
from rerank_service.config.section import Section, readable_problems
from rerank_service.errors import ConfigError

__all__ = ["APP_IMPORT_PATH", "MODEL_IMPORT_PATH", "load_config", "parse_config", "parse_model", "parse_serve_config"]

APP_IMPORT_PATH = "rerank_service.app:build_app"
"""Import path of the Serve application with the ingress."""
MODEL_IMPORT_PATH = "rerank_service.app:build_model"
"""Import path of a Serve application that has one model's replicas and nothing else."""

_SectionT = TypeVar("_SectionT", bound=Section)


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but a repeated key is an error. PyYAML itself keeps only the last value of a repeated
    key."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    line = key.start_mark.line + 1
                    raise ConfigError(f"line {line}: the key {key.value!r} occurs twice in one mapping; remove one")
                seen.add((key.tag, key.value))
        return node


def load_config(path: Path) -> RerankConfig:
    """Reads the configuration from a Serve configuration file.

    Raises `ConfigError` if the file cannot be read or its content is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 text") from None
    return parse_serve_config(text, str(path))


def parse_serve_config(text: str, source: str) -> RerankConfig:
    """Reads the configuration from the YAML text of a Serve configuration.

    If a model has its own application, that application's settings must equal the model's settings in `models`. Error
    messages refer to the text as `source`. Raises `ConfigError`.
    """
    document = None
    try:
        document = yaml.load(text, _UniqueKeyLoader)  # noqa: S506 - a safe loader
        applications = document["applications"]
        apart = {one["name"]: one["args"] for one in applications if one.get("import_path") == MODEL_IMPORT_PATH}
        args = next(one["args"] for one in applications if one.get("import_path") != MODEL_IMPORT_PATH)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read {source}: {error}") from None
    except (AttributeError, KeyError, StopIteration, TypeError):
        raise ConfigError(
            f"{source} is not a Serve configuration: it has no application with args{_hint(document)}"
        ) from None
    config = parse_config(args)
    models_apart = {name: parse_model(model) for name, model in apart.items()}
    for model in config.models:
        if model.application is None:
            continue
        apart_model = models_apart.pop(model.application, None)
        if apart_model is None or _replica_settings(apart_model) != _replica_settings(model):
            raise ConfigError(
                f"model {model.id!r}: application {model.application!r} must be in this file, with the import path "
                f"{MODEL_IMPORT_PATH} and the same settings as the model (a YAML anchor keeps them equal)"
            )
    if models_apart:
        unused = ", ".join(sorted(models_apart))
        raise ConfigError(f"no model uses these applications: {unused}; set models[].application, or remove them")
    return config


def _replica_settings(model: ModelConfig) -> ModelConfig:
    """The settings that a model's replicas use. The ingress alone uses the others."""
    return model.model_copy(update={"application": None, "calibration": None, "version": None})


def _hint(document: Any) -> str:
    """Names the key that was probably meant to be `applications`, or `args` of an application."""
    if not isinstance(document, dict):
        return ""
    applications = document.get("applications", document)
    inner = applications if isinstance(applications, list) else []
    for wanted, section in [("applications", document), *(("args", one) for one in inner)]:
        close = get_close_matches(wanted, list(map(str, section)), n=1) if isinstance(section, dict) else []
        if close and wanted not in section:
            return f"; `{close[0]}` must be spelt `{wanted}`"
    return ""


def parse_config(args: dict[str, Any]) -> RerankConfig:
    """Validates the `args` of the ingress's application. Raises `ConfigError` with one line per problem."""
    return _parse(RerankConfig, args)


def parse_model(args: dict[str, Any]) -> ModelConfig:
    """Validates the `args` of a model's own application. Raises `ConfigError` with one line per problem."""
    return _parse(ModelConfig, args)


def _parse(section: type[_SectionT], args: dict[str, Any]) -> _SectionT:
    try:
        return section.model_validate(args)
    except ValidationError as error:
        raise ConfigError(readable_problems(error, section)) from None
