"""`rerank-service check`: validates a configuration file."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from rerank_service.config import ModelConfig, PoolConfig, RerankConfig, load_config
from rerank_service.errors import ConfigError
from rerank_service.tools.cli.options import ConfigPath, checked_config, config_file

__all__ = ["check"]


def check(
    config: ConfigPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, even for an invalid file.")] = False,
) -> None:
    """Check a configuration file without starting anything."""
    path = config_file(config)
    if not as_json:
        settings = checked_config(path)
        typer.echo(f"{path} is valid; it serves {', '.join(model.id for model in settings.models)}")
        for note in _notes(settings):
            typer.echo(f"note: {note}")
        return
    try:
        settings = load_config(Path(path))
    except ConfigError as error:
        typer.echo(json.dumps({"valid": False, "problems": str(error).splitlines()}))
        raise typer.Exit(2) from None
    models = [model.id for model in settings.models]
    typer.echo(json.dumps({"valid": True, "models": models, "notes": _notes(settings)}))


def _notes(settings: RerankConfig) -> list[str]:
    """Warnings about valid settings that will not work well, or not on this machine alone."""
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
