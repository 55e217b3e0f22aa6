"""`rerank-service drain`: moves a node's replicas to other nodes before the node is stopped."""

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rerank_service.tools.cli.console import fail

if TYPE_CHECKING:
    from rerank_service.tools.deployment.node_drain import Cluster, Node, Occupants

__all__ = ["drain"]

_POLL_S = 0.5
_PROXY_S = 45.0
"""Longest wait for the proxy once the replicas are gone. Serve keeps the proxy for half a minute, and longer while the
proxy has requests: clients that ignore its health check can keep it running forever."""


NodeId = Annotated[
    str | None,
    typer.Argument(metavar="NODE_ID", help="Id of the node, or its first digits; `ray list nodes` shows ids."),
]


def drain(
    node_id: NodeId = None,
    node_ip: Annotated[str | None, typer.Option(help="The node's IP address.")] = None,
    this_node: Annotated[bool, typer.Option("--this-node", help="Drain the node on this machine.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Drain a node that the command would refuse.")] = False,
    address: Annotated[
        str, typer.Option(envvar="RAY_ADDRESS", help="The cluster's address; auto: the cluster of this machine.")
    ] = "auto",
    deadline_s: Annotated[float, typer.Option(min=1, help="Longest time to wait, in seconds.")] = 240,
    as_json: Annotated[bool, typer.Option("--json", help="Print moved and remaining replicas as JSON.")] = False,
) -> None:
    """Move a node's replicas to other nodes, and wait until the node has none.

    The command first lists the replicas and proxies on the node. Unless forced, it refuses to drain the cluster's head,
    or a node with a replica that no other node has room for. Serve's proxy on the node ends last: half a minute after
    the replicas, or later if clients keep their connections to it. Afterwards, run `ray stop` on the node.

    Exit codes: 0 no replica is left; 1 replicas are left at the deadline; 2 refused, or no such node.
    """
    if (node_id is not None) + (node_ip is not None) + this_node != 1:
        raise fail("which node? Give NODE_ID (`ray list nodes` shows ids), --node-ip ADDRESS or --this-node")
    from rerank_service.tools.deployment.node_drain import Cluster, obstacles  # Ray takes a second to import

    try:
        cluster = Cluster(address)
        node = cluster.find(node_id, node_ip)
        occupants = cluster.occupants(node.id)
        against = obstacles(node, cluster.nodes(), occupants)
        facts = _facts(node, occupants, against)
        if not as_json:
            typer.echo("\n  but ".join([f"node {node.id} at {node.ip} has {_content(occupants)}", *against]))
        if against and not force:
            if as_json:
                typer.echo(json.dumps(facts | {"drained": False}))
            raise fail(f"node {node.id} is not drained: {'; '.join(against)}. --force drains it anyway")
        cluster.drain(node, deadline_s)
    except (ConnectionError, ValueError) as error:
        raise fail(str(error)) from None
    left = _wait(cluster, node, deadline_s)
    if as_json:
        result = {"drained": not left.replicas, "replicas_left": len(left.replicas), "proxies_left": left.num_proxies}
        typer.echo(json.dumps(facts | result))
    else:
        typer.echo(f"node {node.id}: {_outcome(node, left, deadline_s)}")
    raise typer.Exit(1 if left.replicas else 0)


def _wait(cluster: "Cluster", node: "Node", deadline_s: float) -> "Occupants":
    """Waits until the node is empty, the deadline passes or only a proxy with clients remains. Returns what is left."""
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
    """Number of proxies that will still end. Serve never ends the proxy on the head."""
    return 0 if node.is_head else occupants.num_proxies


def _outcome(node: "Node", left: "Occupants", deadline_s: float) -> str:
    if left.replicas:
        return f"after {deadline_s:g} s, the node still has {_content(left)}"
    if _num_proxies_to_go(node, left):
        return "no replica is left on it; clients of the node's HTTP proxy will need one retry"
    return "no part of the service is left on it"


def _content(occupants: "Occupants") -> str:
    parts = [
        f"{number} of {deployment} (application {application})"
        for (application, deployment), number in sorted(occupants.counts.items())
    ]
    parts += [f"{occupants.num_proxies} of Serve's HTTP proxies"] if occupants.num_proxies else []
    return ", ".join(parts) or "no part of the service"


def _facts(node: "Node", occupants: "Occupants", against: list[str]) -> dict[str, Any]:
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
