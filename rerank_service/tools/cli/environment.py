"""`rerank-service environment`: what Ray's processes must be told, for a shell."""

import json
import shlex
from typing import Annotated

import typer

from rerank_service.tools.deployment.ray_environment import HAPROXY_ENVIRONMENT, RAY_ENVIRONMENT

__all__ = ["environment"]


def environment(
    haproxy: Annotated[bool, typer.Option("--haproxy", help="Also what puts HAProxy in front.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print names and values as JSON.")] = False,
) -> None:
    """Print the environment of a node's Ray processes, to be set before `ray start`.

    In a shell: eval "$(rerank-service environment --haproxy)"
    """
    variables = RAY_ENVIRONMENT | (HAPROXY_ENVIRONMENT if haproxy else {})
    if as_json:
        typer.echo(json.dumps(variables))
        return
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
