"""Drains one node of a running Ray cluster: Ray places nothing new on the node, and Serve moves the node's replicas.

This module talks only to the cluster's control store (GCS). It is not a Ray driver, because a drained node ends its
drivers.
"""

import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import GcsClient, GcsClientOptions, GlobalStateAccessor  # type: ignore[attr-defined]
from ray.core.generated import autoscaler_pb2, gcs_pb2

__all__ = ["Cluster", "Node", "Occupants", "Replica", "obstacles", "without_a_place"]

_CONNECT_LIMIT_S = 5
_REPLICA_CLASS = "ServeReplica:"  # start of a replica's class name; application and deployment follow
_PROXY_CLASSES = ("ProxyActor", "HAProxyManager")
_HEAD_RESOURCE = "node:__internal_head__"


class Node(NamedTuple):
    """A node that is alive."""

    id: str
    ip: str
    is_head: bool
    is_draining: bool
    free: Mapping[str, float]
    """Resources that are not in use."""


class Replica(NamedTuple):
    """A Serve replica of any deployment."""

    application: str
    deployment: str
    resources: Mapping[str, float]


class Occupants(NamedTuple):
    """Replicas and proxies of the service on one node."""

    replicas: Sequence[Replica]
    num_proxies: int

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """Replicas by application and deployment."""
        return Counter((replica.application, replica.deployment) for replica in self.replicas)


class Cluster:
    """A running cluster. The address `auto` finds the cluster that this machine belongs to."""

    def __init__(self, address: str = "auto") -> None:
        """Raises `ConnectionError` if no cluster answers."""
        self.address = canonicalize_bootstrap_address_or_die(address)
        host, _, port = self.address.rpartition(":")
        try:
            with closing(socket.create_connection((host.strip("[]"), int(port)), _CONNECT_LIMIT_S)):
                pass  # without this attempt, Ray would retry for 40 s
        except OSError as error:
            raise ConnectionError(f"no Ray cluster answers at {self.address}: {error}") from None
        self._state = GlobalStateAccessor(
            GcsClientOptions.create(self.address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
        )
        self._state.connect()

    def nodes(self) -> list[Node]:
        """The nodes that are alive."""
        draining = self._state.get_draining_nodes()
        free = {}
        for serialized in self._state.get_all_available_resources():
            available = gcs_pb2.AvailableResources.FromString(serialized)  # type: ignore[attr-defined]
            free[available.node_id.hex()] = dict(available.resources_available)
        return [
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                _HEAD_RESOURCE in node["Resources"],
                node["NodeID"] in draining,
                free.get(node["NodeID"], {}),
            )
            for node in self._state.get_node_table()
            if node["Alive"]
        ]

    def find(self, node_id: str | None = None, node_ip: str | None = None) -> Node:
        """The node whose id starts with `node_id` or whose address is `node_ip`; with neither, this machine's node.

        Raises `ValueError` unless exactly one node matches.
        """
        nodes = self.nodes()
        if node_id is not None:
            found, sought = [node for node in nodes if node.id.startswith(node_id)], f"with the id {node_id}"
        elif node_ip is not None:
            found, sought = [node for node in nodes if node.ip == node_ip], f"at {node_ip}"
        else:
            found, sought = [node for node in nodes if _is_own_address(node.ip)], "on this machine"
        if len(found) != 1:
            known = "".join(f"\n  {node.id} at {node.ip}" for node in found or nodes)
            raise ValueError(f"the cluster has {len(found) or 'no'} nodes {sought}; choose one of:{known}")
        return found[0]

    def occupants(self, node_id: str) -> Occupants:
        """Replicas and proxies that are alive on a node."""
        replicas, num_proxies = [], 0
        for serialized in self._state.get_actor_table(None, "ALIVE"):
            actor = gcs_pb2.ActorTableData.FromString(serialized)  # type: ignore[attr-defined]
            if actor.address.node_id.hex() != node_id:
                continue
            if actor.class_name.startswith(_REPLICA_CLASS):
                application, _, deployment = actor.class_name.removeprefix(_REPLICA_CLASS).partition(":")
                replicas.append(Replica(application, deployment, dict(actor.required_resources)))
            num_proxies += actor.class_name.startswith(_PROXY_CLASSES)
        return Occupants(replicas, num_proxies)

    def drain(self, node: Node, deadline_s: float) -> None:
        """Requests the drain. Raises `ValueError` if the node refuses."""
        accepted, refusal = GcsClient(address=self.address).drain_node(
            node.id,
            # A busy node refuses the only other reason, that it is idle.
            autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,  # type: ignore[attr-defined]
            "rerank-service drain",
            int((time.time() + deadline_s) * 1000),
        )
        if not accepted:
            raise ValueError(f"node {node.id} cannot be drained: {refusal}")


def obstacles(node: Node, nodes: Sequence[Node], occupants: Occupants) -> list[str]:
    """Reasons against draining `node`, one line each."""
    lines = ["it is the head: if the head ends, the whole cluster ends"] if node.is_head else []
    unplaced = Counter(
        (replica.application, replica.deployment, _words(replica.resources))
        for replica in without_a_place(occupants.replicas, [other for other in nodes if other.id != node.id])
    )
    for (application, deployment, resources), number in unplaced.items():
        lines.append(
            f"no other node has room for {number} of the replicas of {deployment} (application {application}); "
            f"each replica needs {resources}"
        )
    return lines


def without_a_place(replicas: Sequence[Replica], nodes: Sequence[Node]) -> list[Replica]:
    """Replicas that fit on none of `nodes` if the largest are placed first; nodes that are draining are ignored."""
    free = [dict(node.free) for node in nodes if not node.is_draining]
    unplaced = []
    for replica in sorted(replicas, key=lambda replica: -sum(replica.resources.values())):
        for room in free:
            if all(room.get(name, 0) >= amount - 1e-6 for name, amount in replica.resources.items()):
                for name, amount in replica.resources.items():
                    room[name] = room.get(name, 0) - amount
                break
        else:
            unplaced.append(replica)
    return unplaced


def _words(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items())) or "nothing"


def _is_own_address(ip: str) -> bool:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(ip, 0, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, protocol)) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True
