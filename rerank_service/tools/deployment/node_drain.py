"""Draining one node of a running Ray cluster: Ray places nothing there any more, and Serve moves the replicas.

It asks the cluster's control store alone and is no Ray driver: a drained node ends its own drivers with it. It must not
know who asks, nor stop anything.
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
_REPLICA_CLASS = "ServeReplica:"  # what Serve names the actors of replicas, before the application and the deployment
_PROXY_CLASSES = ("ProxyActor", "HAProxyManager")
_HEAD_RESOURCE = "node:__internal_head__"


class Node(NamedTuple):
    """A node that is alive."""

    id: str
    ip: str
    is_head: bool
    is_draining: bool
    free: Mapping[str, float]
    """Resources that nothing on it has."""


class Replica(NamedTuple):
    """A Serve replica, of a model or an ingress."""

    application: str
    deployment: str
    resources: Mapping[str, float]


class Occupants(NamedTuple):
    """What of the service is on a node."""

    replicas: Sequence[Replica]
    num_proxies: int

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """Replicas by application and deployment."""
        return Counter((replica.application, replica.deployment) for replica in self.replicas)


class Cluster:
    """A running cluster, by its address; `auto` finds the one that this machine is a node of."""

    def __init__(self, address: str = "auto") -> None:
        """Raises `ConnectionError` if there is none."""
        self.address = canonicalize_bootstrap_address_or_die(address)
        host, _, port = self.address.rpartition(":")
        try:
            with closing(socket.create_connection((host.strip("[]"), int(port)), _CONNECT_LIMIT_S)):
                pass  # Ray itself would go on trying for 40 s
        except OSError as error:
            raise ConnectionError(f"no Ray cluster answers at {self.address}: {error}") from None
        self._state = GlobalStateAccessor(
            GcsClientOptions.create(self.address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
        )
        self._state.connect()

    def nodes(self) -> list[Node]:
        """Those that are alive."""
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
        """The node with this id, its first digits or this address; with neither, the one that this machine is.

        Raises `ValueError` unless there is exactly one.
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
            raise ValueError(f"the cluster has {len(found) or 'no'} nodes {sought}; there are:{known}")
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
        """Asks for it. Raises `ValueError` if the node refuses."""
        accepted, refusal = GcsClient(address=self.address).drain_node(
            node.id,
            autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,  # type: ignore[attr-defined]  # the other refuses a busy node
            "rerank-service drain",
            int((time.time() + deadline_s) * 1000),
        )
        if not accepted:
            raise ValueError(f"node {node.id} cannot be drained: {refusal}")


def obstacles(node: Node, nodes: Sequence[Node], occupants: Occupants) -> list[str]:
    """What speaks against draining a node, one line each."""
    lines = ["it is the head: without it the whole cluster ends"] if node.is_head else []
    homeless = Counter(
        (replica.application, replica.deployment, _told(replica.resources))
        for replica in without_a_place(occupants.replicas, [other for other in nodes if other.id != node.id])
    )
    for (application, deployment, resources), number in homeless.items():
        lines.append(
            f"no other node has room for {number} of the replicas of {deployment} (application {application}), "
            f"each of which takes {resources}"
        )
    return lines


def without_a_place(replicas: Sequence[Replica], nodes: Sequence[Node]) -> list[Replica]:
    """Those that fit on none of the nodes that are not being drained, the largest placed first."""
    free = [dict(node.free) for node in nodes if not node.is_draining]
    homeless = []
    for replica in sorted(replicas, key=lambda replica: -sum(replica.resources.values())):
        place = next((room for room in free if _fits(replica.resources, room)), None)
        if place is None:
            homeless.append(replica)
            continue
        for name, amount in replica.resources.items():
            place[name] = place.get(name, 0) - amount
    return homeless


def _fits(resources: Mapping[str, float], room: Mapping[str, float]) -> bool:
    return all(room.get(name, 0) >= amount - 1e-6 for name, amount in resources.items())


def _told(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items())) or "nothing"


def _is_own_address(ip: str) -> bool:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(ip, 0, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, protocol)) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True
