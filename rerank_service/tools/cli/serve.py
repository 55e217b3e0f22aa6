"""`rerank-service serve`: checks the configuration, sets Ray's environment and runs the service in the foreground.
`rerank-service environment`: prints Ray's environment for a shell."""

import json
import os
import shlex
from typing import Annotated

import typer

from rerank_service.tools.cli.options import ConfigPath, checked_config, config_file
from rerank_service.tools.deployment.ray_environment import HAPROXY_ENVIRONMENT, RAY_ENVIRONMENT, set_ray_environment

__all__ = ["environment", "serve"]


def serve(
    config: ConfigPath = None,
    haproxy: Annotated[
        bool,
        typer.Option("--haproxy", help="Put HAProxy in front, for less CPU per request. It listens on all interfaces."),
    ] = False,
) -> None:
    """Start the service in the foreground; Ctrl-C stops it.

    The command differs from `serve run CONFIG` in three ways. It reports an invalid configuration or a port in use in
    one line before it starts anything. It gives Ray's processes the variables of `rerank-service environment`. On
    SIGTERM and Ctrl-C, it lets requests in flight finish. Without CONFIG and without a serve_config.yaml in this
    folder, it serves the default configuration: the embedded model on the CPU.
    """
    path = config_file(config)
    checked_config(path)
    set_ray_environment(os.environ, haproxy=haproxy)
    from rerank_service.tools.cli.foreground import run  # only now: Ray reads the environment when it is imported

    run(path)


def environment(
    haproxy: Annotated[bool, typer.Option("--haproxy", help="Include the variables for HAProxy.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print names and values as JSON.")] = False,
) -> None:
    """Print the environment variables for a node's Ray processes.

    Set the variables before `ray start`. In a shell: eval "$(rerank-service environment --haproxy)"
    """
    variables = RAY_ENVIRONMENT | (HAPROXY_ENVIRONMENT if haproxy else {})
    if as_json:
        typer.echo(json.dumps(variables))
        return
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
