"""`rerank-service serve`: check the configuration, then hand over to `serve run`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rerank_service.cli.check import checked_config
from rerank_service.cli.console import ConfigPath, fail
from rerank_service.ray_environment import set_ray_environment

__all__ = ["serve"]


def serve(
    config: ConfigPath = "serve_config.yaml",
    haproxy: Annotated[
        bool,
        typer.Option("--haproxy", help="HAProxy in front: less CPU a request. Listens on all interfaces."),
    ] = False,
) -> None:
    """Start the service in the foreground; Ctrl-C stops it.

    The same as `serve run CONFIG`, except that a wrong configuration ends at once with a readable error
    (`serve run` would wait for ever after one), and that Ray's processes get what `ray_environment` says.
    """
    checked_config(config)
    program = Path(sys.executable).with_name("serve")
    if not program.exists():
        raise fail(f"{program} is missing; install the package with its dependencies: pip install rerank-service")
    set_ray_environment(os.environ, haproxy=haproxy)
    os.execv(program, [str(program), "run", config])  # noqa: S606 - our own interpreter's `serve`
