"""`rerank-service check`: is this configuration one that can be served?"""

import os
from pathlib import Path

from rerank_service.cli.console import ConfigPath, fail, stdout
from rerank_service.config import ModelConfig, PoolConfig, RerankConfig, load_config
from rerank_service.errors import ConfigError

__all__ = ["check", "checked_config"]


def check(config: ConfigPath = "serve_config.yaml") -> None:
    """Check a configuration file without starting anything."""
    settings = checked_config(config)
    names = ", ".join(model.id for model in settings.models)
    stdout.print(f"{config} is valid; it serves {names}", highlight=False, soft_wrap=True)
    num_cpus = os.cpu_count() or 1
    hosts: list[ModelConfig | PoolConfig] = [
        *(model for model in settings.models if model.pool is None),
        *settings.pools,
    ]
    needed = sum(host.replica.num_cpus * host.autoscaling.min_replicas for host in hosts)
    if needed > num_cpus:
        stdout.print(
            f"note: the replicas take {needed:g} CPUs and this machine has {num_cpus}: without other nodes some never "
            "start, and the service is never ready; lower autoscaling.min_replicas or replica.num_cpus",
            highlight=False,
            soft_wrap=True,
        )


def checked_config(path: str) -> RerankConfig:
    """The settings of a file; ends the program with every problem if they are wrong."""
    try:
        return load_config(Path(path))
    except ConfigError as error:
        raise fail(f"{path} cannot be served\n{error}") from None
