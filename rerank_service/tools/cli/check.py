"""`rerank-service check`: validates a configuration file."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from rerank_service.config import (
    APP_IMPORT_PATH,
    MODEL_IMPORT_PATH,
    ModelConfig,
    PoolConfig,
    RerankConfig,
    load_config,
)
from rerank_service.errors import ConfigError
from rerank_service.tools.cli.console import fail
from rerank_service.tools.cli.options import ConfigPath, config_file, missing_folders

__all__ = ["check"]


def check(
    config: ConfigPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, even for an invalid file.")] = False,
) -> None:
    """Check a configuration file without starting anything."""
    path = config_file(config)
    try:
        settings = load_config(Path(path))
        from rerank_service.tools.cli.serve_file import read_serve_text  # imports Ray, which takes seconds

        import_paths = {
            one.name: one.import_path for one in read_serve_text(Path(path).read_text("utf-8")).applications
        }
    except ConfigError as error:
        if not as_json:
            raise fail(f"{path} cannot be served\n{error}") from None
        typer.echo(json.dumps({"valid": False, "problems": str(error).splitlines()}))
        raise typer.Exit(2) from None
    models = [model.id for model in settings.listed]
    notes = [
        *_capacity_notes(settings),
        *_version_notes(settings),
        *_cascade_notes(settings),
        *_foreign_applications(import_paths),
        *_missing_files(settings),
    ]
    if as_json:
        typer.echo(json.dumps({"valid": True, "models": models, "notes": notes}))
        return
    typer.echo(f"{path} is valid; it serves {', '.join(models)}")
    for note in notes:
        typer.echo(f"note: {note}")


def _version_notes(settings: RerankConfig) -> Iterator[str]:
    for model in settings.models:
        if model.version is not None and model.application is None:
            yield (
                f"{model.id}, a version of {model.version.of}, has no application of its own: adding, changing or "
                "removing it restarts the replicas of all models in the ingress's application"
            )


def _cascade_notes(settings: RerankConfig) -> Iterator[str]:
    most = max(settings.limits.max_passages, settings.max_documents)
    for cascade in settings.cascades:
        for stage in cascade.stages:
            if isinstance(stage.keep, int) and stage.keep >= most:
                yield (
                    f"cascade {cascade.id}: stage {stage.model} keeps {stage.keep} passages, and a request has at most "
                    f"{most} (limits.max_passages, limits.max_documents): it never drops a passage"
                )


def _foreign_applications(import_paths: dict[str, str]) -> Iterator[str]:
    for name, import_path in import_paths.items():
        if import_path not in (APP_IMPORT_PATH, MODEL_IMPORT_PATH):
            yield (
                f"application {name!r} has the import path {import_path}, which is not part of this service "
                f"({APP_IMPORT_PATH} or {MODEL_IMPORT_PATH}); the check only made sure that its package is installed"
            )


def _missing_files(settings: RerankConfig) -> Iterator[str]:
    """Warnings, not errors: replicas and ingresses may run on other nodes, which may have the files."""
    hashes = settings.auth.key_hashes_file
    if hashes is not None and not hashes.is_file():
        yield f"auth.key_hashes_file {hashes} is not a file on this machine; every node with an ingress needs it"
    yield from missing_folders(settings)


def _capacity_notes(settings: RerankConfig) -> list[str]:
    """Warnings about valid settings that work badly or need more machines than this one."""
    num_cpus = os.cpu_count() or 1
    hosts: list[ModelConfig | PoolConfig] = [
        *(model for model in settings.models if model.pool is None),
        *settings.pools,
    ]
    limit_s = settings.limits.request_timeout_s
    notes = [
        f"replica.graceful_shutdown_timeout_s {grace_s:g} of {host.deployment_name} is not above "
        f"limits.request_timeout_s {limit_s:g}: during a rolling update, longer requests may be scored twice"
        for host in hosts
        if (grace_s := host.replica.graceful_shutdown_timeout_s) is not None and grace_s <= limit_s
    ]
    needed = sum(host.replica.num_cpus * host.autoscaling.min_replicas for host in hosts)
    if needed > num_cpus:
        notes.append(
            f"the replicas need {needed:g} CPUs and this machine has {num_cpus}: without other nodes, some replicas "
            "never start and the service never becomes ready; lower autoscaling.min_replicas or replica.num_cpus"
        )
    return notes
