"""Checks the names in a Serve configuration: import paths of applications, and deployments of this service's
applications."""

import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rerank_service.config import (
    APP_IMPORT_PATH,
    MODEL_IMPORT_PATH,
    BatchingConfig,
    parse_config,
    parse_model,
    readable_problems,
)

__all__ = ["deployment_problems", "import_problems"]

_OURS = (APP_IMPORT_PATH, MODEL_IMPORT_PATH)
_BROUGHT = ("working_dir", "py_modules", "pip", "uv", "conda", "container", "image_uri")
"""Keys of a runtime environment that may bring packages that are not installed here."""


def import_problems(application: Mapping[str, Any], place: str) -> Iterator[str]:
    """Problems with the import path of an application."""
    import_path = application.get("import_path")
    if not isinstance(import_path, str) or import_path in _OURS:
        return
    package = import_path.partition(":")[0].partition(".")[0]
    close = get_close_matches(import_path, _OURS, n=1, cutoff=0.8)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    if package == "rerank_service":
        yield f"{place}.import_path: {import_path} does not exist{hint or f'; there are {_OURS[0]} and {_OURS[1]}'}"
    elif not _brings_packages(application) and not _is_installed(package):
        yield f"{place}.import_path: the package {package!r} is not installed{hint}"


def deployment_problems(application: Mapping[str, Any], place: str) -> Iterator[str]:
    """Names in `deployments` that the application does not have, and wrong `user_config` of its models."""
    models = _deployments(application)
    for index, deployment in enumerate(application.get("deployments") or () if models else ()):
        name, where = str(deployment.get("name")), f"{place}.deployments[{index}]"
        if name not in models:
            close = get_close_matches(name, models, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"it has {', '.join(models)}"
            yield f"{where}.name: the application has no deployment {name!r}; {hint}"
        elif models[name] and isinstance(deployment.get("user_config"), Mapping):
            try:
                BatchingConfig.model_validate(deployment["user_config"])
            except ValidationError as error:
                yield from (
                    f"{where}.user_config.{line}" for line in readable_problems(error, BatchingConfig).splitlines()
                )


def _deployments(application: Mapping[str, Any]) -> dict[str, bool]:
    """Names of the deployments of one of this service's applications, each with whether it has a single model; empty
    for other applications."""
    if application.get("import_path") == MODEL_IMPORT_PATH:
        return {"root": False, parse_model(application["args"]).deployment_name: True}
    if application.get("import_path") != APP_IMPORT_PATH:
        return {}
    config = parse_config(application["args"])
    models = {one.deployment_name: True for one in config.models if one.application is None and one.pool is None}
    return {"ingress": False} | models | {pool.deployment_name: False for pool in config.pools}


def _brings_packages(application: Mapping[str, Any]) -> bool:
    runtime = application.get("runtime_env")
    return isinstance(runtime, Mapping) and any(key in runtime for key in _BROUGHT)


def _is_installed(package: str) -> bool:
    """Whether the package can be imported here or from the current folder, which is on Python's path in `serve run`."""
    if not package.isidentifier():
        return False
    is_here = any((Path(folder) / f"{package}{end}").exists() for folder in (*sys.path, ".") for end in ("", ".py"))
    return is_here or find_spec(package) is not None
