"""Kubernetes manifests as they are applied: built by kustomize and validated against schemas."""

import json
import shutil
import subprocess
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

__all__ = ["KUBERNETES", "RAY_SERVICE_SCHEMA", "built", "kustomize", "problems"]

KUBERNETES = "v1.37.0"
RAY_SERVICE_SCHEMA = Path(__file__).parent / "schemas" / "rayservice.yaml"


def kustomize() -> list[str] | None:
    """Returns a command that builds a kustomization; null if this machine has no such program."""
    commands = (["kubectl", "kustomize"], ["kustomize", "build"])
    return next((command for command in commands if shutil.which(command[0])), None)


@cache
def built(folder: Path) -> tuple[dict[str, Any], ...]:
    """Returns the resources of a base or overlay."""
    command = kustomize()
    assert command is not None
    result = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return tuple(yaml.safe_load_all(result.stdout))


def problems(resource: dict[str, Any]) -> list[str]:
    """Lists a resource's deviations from its schema, one line each. Fields that the schema lacks are deviations."""
    validator = Draft202012Validator(_schema(resource["apiVersion"], resource["kind"]), registry=_registry())
    return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(resource)]


def _schema(api_version: str, kind: str) -> Any:
    if (api_version, kind) == ("ray.io/v1", "RayService"):
        return yaml.safe_load(RAY_SERVICE_SCHEMA.read_text())
    group, _, version = api_version.rpartition("/")
    prefix = f"{group.split('.')[0]}-" if group else ""
    return _read(f"{kind.lower()}-{prefix}{version}.json")


@cache
def _registry() -> Any:
    return Resource.from_contents(_read("_definitions.json")) @ Registry()


def _read(name: str) -> Any:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"{KUBERNETES}-local-strict"
    return json.loads((folder / name).read_text(encoding="utf-8"))
