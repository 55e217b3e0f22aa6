"""`rerank-service serve`: checks the configuration, sets Ray's environment and runs the service in the foreground.
`rerank-service environment`: prints that environment for a shell."""

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
        typer.Option("--haproxy", help="HAProxy in front: less CPU per request. Listens on all interfaces."),
    ] = False,
) -> None:
    """Start the service in the foreground; Ctrl-C stops it.

    Like `serve run CONFIG`, except that an invalid configuration or a port in use is reported in one line before
    anything starts, that Ray's processes get the variables of `rerank-service environment`, and that SIGTERM and Ctrl-C
    let requests in flight finish. Without CONFIG and without a serve_config.yaml in this folder, the default
    configuration is served: the embedded model on the CPU.
    """
    path = config_file(config)
    checked_config(path)
    set_ray_environment(os.environ, haproxy=haproxy)
    from rerank_service.tools.cli.foreground import run  # after the environment, which Ray reads when it is imported

    run(path)


def environment(
    haproxy: Annotated[bool, typer.Option("--haproxy", help="Include the variables for HAProxy in front.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print names and values as JSON.")] = False,
) -> None:
    """Print the environment variables for a node's Ray processes.

    Set them before `ray start`. In a shell: eval "$(rerank-service environment --haproxy)"
    """
    variables = RAY_ENVIRONMENT | (HAPROXY_ENVIRONMENT if haproxy else {})
    if as_json:
        typer.echo(json.dumps(variables))
        return
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
