"""`rerank-service serve`: check the configuration, set Ray's environment, run in the foreground."""

import os
from typing import Annotated

import typer

from rerank_service.tools.cli.check import checked_config
from rerank_service.tools.cli.console import ConfigPath
from rerank_service.tools.deployment.ray_environment import set_ray_environment

__all__ = ["serve"]


def serve(
    config: ConfigPath = "serve_config.yaml",
    haproxy: Annotated[
        bool,
        typer.Option("--haproxy", help="HAProxy in front: less CPU a request. Listens on all interfaces."),
    ] = False,
) -> None:
    """Start the service in the foreground; Ctrl-C stops it.

    As `serve run CONFIG` does, except that a wrong configuration or a port in use ends it at once with a readable
    error, that Ray's processes get what `ray_environment` says, and that SIGTERM stops it as Ctrl-C does: requests in
    flight are answered first.
    """
    checked_config(config)
    set_ray_environment(os.environ, haproxy=haproxy)
    from rerank_service.tools.cli.foreground import run  # Ray reads the environment when it is imported

    run(config)
