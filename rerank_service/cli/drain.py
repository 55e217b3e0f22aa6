"""`rerank-service drain`: a node's replicas are started elsewhere and finish what they have, before the node goes."""

import json
import time
from typing import Annotated

import typer

from rerank_service.cli.console import fail, stdout

__all__ = ["drain"]

_POLL_S = 0.5


def drain(
    address: Annotated[str, typer.Option(envvar="RAY_ADDRESS", help="The cluster; auto finds this node's.")] = "auto",
    node_ip: Annotated[str | None, typer.Option(help="The node; this one if not given.")] = None,
    deadline_s: Annotated[float, typer.Option(min=1, help="Longest to wait.")] = 90,
    as_json: Annotated[bool, typer.Option("--json", help="Print the node and what is left on it as JSON.")] = False,
) -> None:
    """Drain a node of a cluster: nothing new is placed there, and this waits until no replica is left.

    Exit code 1 if some are left at the deadline. Then stop the node, with `ray stop` there.
    """
    from rerank_service.node_drain import drain_node, replicas_on  # Ray takes a second; --help need not

    deadline = time.monotonic() + deadline_s
    try:
        node_id = drain_node(address, node_ip, deadline_s)
    except (ConnectionError, ValueError) as error:
        raise fail(str(error)) from None
    while (num_left := replicas_on(node_id)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    if as_json:
        typer.echo(json.dumps({"node_id": node_id, "replicas_left": num_left}))
    elif num_left:
        stdout.print(f"{num_left} replicas are left on node {node_id} after {deadline_s:g} s", highlight=False)
    else:
        stdout.print(f"node {node_id} has no replica left", highlight=False)
    raise typer.Exit(1 if num_left else 0)
