"""`rerank-service check`: is this configuration one that can be served?"""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from rerank_service.config import ModelConfig, PoolConfig, RerankConfig, load_config
from rerank_service.errors import ConfigError
from rerank_service.tools.cli.console import ConfigPath, fail, stdout

__all__ = ["check", "checked_config"]


def check(
    config: ConfigPath = "serve_config.yaml",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for a wrong file too.")] = False,
) -> None:
    """Check a configuration file without starting anything."""
    if as_json:
        _check_as_json(config)
        return
    settings = checked_config(config)
    names = ", ".join(model.id for model in settings.models)
    stdout.print(f"{config} is valid; it serves {names}", highlight=False, soft_wrap=True)
    for note in _notes(settings):
        stdout.print(f"note: {note}", highlight=False, soft_wrap=True)


def _check_as_json(path: str) -> None:
    try:
        settings = load_config(Path(path))
    except ConfigError as error:
        typer.echo(json.dumps({"valid": False, "problems": str(error).splitlines()}))
        raise typer.Exit(2) from None
    models = [model.id for model in settings.models]
    typer.echo(json.dumps({"valid": True, "models": models, "notes": _notes(settings)}))


def _notes(settings: RerankConfig) -> list[str]:
    """What is lawful, and yet not going to work on this machine alone."""
    num_cpus = os.cpu_count() or 1
    hosts: list[ModelConfig | PoolConfig] = [
        *(model for model in settings.models if model.pool is None),
        *settings.pools,
    ]
    limit_s = settings.limits.request_timeout_s
    notes = [
        f"replica.graceful_shutdown_timeout_s {grace_s:g} of {host.deployment_name} is not above "
        f"limits.request_timeout_s {limit_s:g}: a rolling update may score longer requests twice"
        for host in hosts
        if (grace_s := host.replica.graceful_shutdown_timeout_s) is not None and grace_s <= limit_s
    ]
    needed = sum(host.replica.num_cpus * host.autoscaling.min_replicas for host in hosts)
    if needed <= num_cpus:
        return notes
    return [
        *notes,
        f"the replicas take {needed:g} CPUs and this machine has {num_cpus}: without other nodes some never "
        "start, and the service is never ready; lower autoscaling.min_replicas or replica.num_cpus",
    ]


def checked_config(path: str) -> RerankConfig:
    """The settings of a file; ends the program with every problem if they are wrong."""
    try:
        return load_config(Path(path))
    except ConfigError as error:
        raise fail(f"{path} cannot be served\n{error}") from None
