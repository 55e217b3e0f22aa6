"""Draining one node of a running Ray cluster: Ray places nothing there any more, and Serve moves the replicas.

It must not know who asks, nor stop anything.
"""

import time

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated import autoscaler_pb2
from ray.util.state import list_actors

__all__ = ["drain_node", "replicas_on"]

_MAX_ACTORS = 10_000
_REPLICA_CLASS = "ServeReplica:"  # what Serve names the actors of replicas


def drain_node(address: str, node_ip: str | None, deadline_s: float) -> str:
    """Asks for it, and returns the node's id; null is the node that this process is on.

    Raises `ConnectionError` if there is no cluster, `ValueError` if it has no such node or refuses.
    """
    ray.init(address=address, log_to_driver=False, configure_logging=False)
    context = ray.get_runtime_context()
    node_id = context.get_node_id() if node_ip is None else _node_at(node_ip)
    accepted, refusal = GcsClient(address=context.gcs_address).drain_node(
        node_id,
        autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,  # type: ignore[attr-defined]  # the other refuses a busy node
        "rerank-service drain",
        int((time.time() + deadline_s) * 1000),
    )
    if not accepted:
        raise ValueError(f"node {node_id} cannot be drained: {refusal}")
    return str(node_id)


def replicas_on(node_id: str) -> int:
    """Replicas of models and ingresses that are alive on a node."""
    address = ray.get_runtime_context().gcs_address
    actors = list_actors(address, [("node_id", "=", node_id), ("state", "=", "ALIVE")], limit=_MAX_ACTORS)
    return sum(str(actor.class_name).startswith(_REPLICA_CLASS) for actor in actors)


def _node_at(node_ip: str) -> str:
    found = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == node_ip]
    if len(found) != 1:
        raise ValueError(f"the cluster has {len(found)} nodes at {node_ip}")
    return str(found[0])
