"""Validates documents against Kubernetes' schemas, and custom resources against the schemas in this folder."""

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

__all__ = ["KUBERNETES", "problems"]

KUBERNETES = "v1.37.0"
_FOLDER = Path(__file__).parent


def problems(document: dict[str, Any]) -> list[str]:
    """Lists a document's deviations from its schema, one line each. Fields that the schema lacks are deviations."""
    schema = _schema(document["apiVersion"], document["kind"])
    if schema is None:
        return [f"no schema for {document['apiVersion']} {document['kind']}"]
    validator = Draft202012Validator(schema, registry=_registry())
    return [f"{error.json_path}: {error.message[:300]}" for error in _leaves(validator.iter_errors(document))]


def _leaves(errors: Any) -> Iterator[Any]:
    """The errors that name the field at fault, instead of the alternative that it does not match."""
    for error in errors:
        if error.validator == "anyOf" and error.context:
            deepest = max(len(inner.path) for inner in error.context)
            yield from (inner for inner in error.context if len(inner.path) == deepest and inner.validator != "type")
            continue
        yield error


@cache
def _schema(api_version: str, kind: str) -> Any:
    own = _FOLDER / f"{kind.lower()}.yaml"
    if own.is_file():
        schema = yaml.safe_load(own.read_text(encoding="utf-8"))
        return schema if schema["properties"]["apiVersion"]["const"] == api_version else None
    group, _, version = api_version.rpartition("/")
    prefix = f"{group.split('.')[0]}-" if group else ""
    return _read(f"{kind.lower()}-{prefix}{version}.json")


@cache
def _registry() -> Any:
    return Resource.from_contents(_read("_definitions.json")) @ Registry()


def _read(name: str) -> Any:
    path = files("kubernetes_validate") / "kubernetes-json-schema" / f"{KUBERNETES}-local-strict" / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
