"""`rerank-service drain`: a node's replicas are started elsewhere and finish what they have, before the node goes."""

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rerank_service.tools.cli.console import fail, stdout

if TYPE_CHECKING:
    from rerank_service.tools.deployment.node_drain import Cluster, Node, Occupants

__all__ = ["drain"]

_POLL_S = 0.5
_PROXY_S = 45.0
"""Longest wait for the proxy once the replicas are gone. Serve keeps it for half a minute and until no request is on
it: clients that do not follow its health check keep it for good."""


def drain(
    node_id: Annotated[
        str | None,
        typer.Argument(metavar="[NODE_ID]", help="The node, as `ray list nodes` shows it; its first digits do."),
    ] = None,
    node_ip: Annotated[str | None, typer.Option(help="The node, by its address.")] = None,
    this_node: Annotated[bool, typer.Option("--this-node", help="The node that this machine is.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Drain even what no other node can take.")] = False,
    address: Annotated[str, typer.Option(envvar="RAY_ADDRESS", help="The cluster; auto finds this node's.")] = "auto",
    deadline_s: Annotated[float, typer.Option(min=1, help="Longest to wait.")] = 240,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what moves and what is left as one JSON object.")
    ] = False,
) -> None:
    """Drain a node of a cluster: its replicas are started elsewhere, and this waits until none is left on it.

    It says first what is on the node. Where no other node can take a replica, and for the cluster's head, it refuses
    unless forced. Serve's proxy on the node goes last, half a minute after the replicas, or stays while clients keep
    their connections to it. Then stop the node, with `ray stop` there.

    Exit codes: 0 no replica is left; 1 some are at the deadline; 2 refused, or no such node.
    """
    if (node_id is not None) + (node_ip is not None) + this_node != 1:
        raise fail("which node? Give one of NODE_ID (`ray list nodes` shows them), --node-ip ADDRESS or --this-node")
    from rerank_service.tools.deployment.node_drain import Cluster, obstacles  # Ray takes a second; --help need not

    try:
        cluster = Cluster(address)
        node = cluster.find(node_id, node_ip)
        occupants = cluster.occupants(node.id)
        against = obstacles(node, cluster.nodes(), occupants)
        _tell(node, occupants, against, as_json)
        if against and not force:
            if as_json:
                typer.echo(json.dumps(_as_json(node, occupants, against) | {"drained": False}))
            raise fail(f"node {node.id} is not drained: {'; '.join(against)}. --force drains it all the same")
        cluster.drain(node, deadline_s)
    except (ConnectionError, ValueError) as error:
        raise fail(str(error)) from None
    left = _wait(cluster, node, deadline_s)
    is_drained = not left.replicas
    if as_json:
        result = {"drained": is_drained, "replicas_left": len(left.replicas), "proxies_left": left.num_proxies}
        typer.echo(json.dumps(_as_json(node, occupants, against) | result))
    else:
        if not is_drained:
            told = f"after {deadline_s:g} s it still has {_content(left)}"
        elif _num_proxies_to_go(node, left):
            told = "no replica is left on it; clients of its HTTP proxy will need one retry"
        else:
            told = "nothing of the service is left on it"
        stdout.print(f"node {node.id}: {told}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if is_drained else 1)


def _wait(cluster: "Cluster", node: "Node", deadline_s: float) -> "Occupants":
    """What is left when all has gone, at the deadline, or when only a proxy with clients stays."""
    deadline = time.monotonic() + deadline_s
    while True:
        left = cluster.occupants(node.id)
        now = time.monotonic()
        if not left.replicas:
            deadline = min(deadline, now + _PROXY_S)
        if not (left.replicas or _num_proxies_to_go(node, left)) or now >= deadline:
            return left
        time.sleep(_POLL_S)


def _num_proxies_to_go(node: "Node", occupants: "Occupants") -> int:
    """Serve keeps the head's proxy."""
    return 0 if node.is_head else occupants.num_proxies


def _tell(node: "Node", occupants: "Occupants", against: list[str], as_json: bool) -> None:
    if as_json:
        return
    stdout.print(f"node {node.id} at {node.ip} has {_content(occupants)}", highlight=False, soft_wrap=True)
    for line in against:
        stdout.print(f"  but {line}", highlight=False, soft_wrap=True)


def _content(occupants: "Occupants") -> str:
    parts = [
        f"{number} of {deployment} (application {application})"
        for (application, deployment), number in sorted(occupants.counts.items())
    ]
    parts += [f"{occupants.num_proxies} of Serve's HTTP proxies"] if occupants.num_proxies else []
    return ", ".join(parts) or "nothing of the service"


def _as_json(node: "Node", occupants: "Occupants", against: list[str]) -> dict[str, Any]:
    moves = [
        {"application": application, "deployment": deployment, "replicas": number}
        for (application, deployment), number in sorted(occupants.counts.items())
    ]
    return {
        "node_id": node.id,
        "node_ip": node.ip,
        "moves": moves,
        "proxies": occupants.num_proxies,
        "against": against,
    }
