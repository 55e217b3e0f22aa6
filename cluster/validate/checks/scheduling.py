"""Where pods can run, and how soon they are replaced when their node is lost."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.validate.checks.observing import environment_of
from cluster.validate.documents import Document, Documents, Pod, selects
from cluster.validate.finding import Finding, NodeShape, Setting

__all__ = ["fits_nodes", "gpus_are_hidden", "jobs_run_on_gpu_nodes", "survives_a_lost_node"]

_LONGEST_TOLERATION_S = 60
"""Kubernetes tolerates a lost node for 300 s by default, and the head's replacement starts only then."""
_NODES_OR_MORE = ("kubernetes.io/hostname", "topology.kubernetes.io/")
"""Node labels that differ between nodes, zones or regions."""
_GPU_TAINT = "nvidia.com/gpu:NoSchedule"
_NO_GPU = {"", "none", "void"}


@dataclass
class _Node:
    shape: NodeShape
    pods: list[Pod] = field(default_factory=list)

    def has_room(self, pod: Pod) -> bool:
        pods = [*self.pods, pod]
        return (
            sum(each.requests("cpu") for each in pods) <= self.shape.cpu
            and sum(each.requests("memory") for each in pods) <= self.shape.memory
            and sum(each.requests("nvidia.com/gpu") for each in pods) <= self.shape.gpus
            and all(pod.tolerates(taint) for taint in self.shape.taints)
            and not any(_refuses(pod, other) or _refuses(other, pod) for other in self.pods)
        )


def fits_nodes(documents: Documents, setting: Setting) -> Iterator[Finding]:
    """At their minimum, all pods fit on the smallest cluster that the set is made for; jobs run beside them."""
    if not setting.nodes:
        return
    nodes = [_Node(shape) for shape in setting.nodes for _ in range(shape.count or 0)]
    spare = [shape for shape in setting.nodes if shape.count is None]
    pods = [pod for pod in documents.pods for _ in range(max(pod.fewest, 1))]
    # The largest first: packing in this order needs the fewest nodes in practice.
    for pod in sorted(pods, key=lambda pod: (-pod.requests("nvidia.com/gpu"), -pod.requests("cpu"))):
        node = next((node for node in nodes if node.has_room(pod)), None)
        if node is None:
            shape = next((shape for shape in spare if _Node(shape).has_room(pod)), None)
            if shape is None:
                yield Finding(pod.owner, f"{_wish(pod)} fit on no free node of {_offer(setting)}")
                continue
            node = _Node(shape)
            nodes.append(node)
        node.pods.append(pod)


def _wish(pod: Pod) -> str:
    gpus = pod.requests("nvidia.com/gpu")
    wish = f"{pod.requests('cpu'):g} CPUs, {pod.requests('memory') / 2**30:g}Gi" + (f", {gpus:g} GPUs" if gpus else "")
    return wish if not pod.spec.get("tolerations") else f"{wish} (with its tolerations)"


def _offer(setting: Setting) -> str:
    return ", ".join(
        f"{shape.count or 'any number'} of {shape.name} ({shape.cpu:g} CPUs, {shape.memory / 2**30:g}Gi"
        + (f", {shape.gpus} GPUs" if shape.gpus else "")
        + (f", taints {' '.join(shape.taints)})" if shape.taints else ")")
        for shape in setting.nodes
    )


def _refuses(pod: Pod, other: Pod) -> bool:
    """Whether a pod's required anti-affinity keeps another pod off its node."""
    return any(
        term.get("topologyKey") == "kubernetes.io/hostname" and selects(term.get("labelSelector"), other.labels)
        for term in _anti_affinity(pod, required_only=True)
    )


def _anti_affinity(pod: Pod, required_only: bool = False) -> list[Document]:
    rules = pod.spec.get("affinity", {}).get("podAntiAffinity", {})
    terms = list(rules.get("requiredDuringSchedulingIgnoredDuringExecution", []))
    if not required_only:
        preferred = rules.get("preferredDuringSchedulingIgnoredDuringExecution", [])
        terms += [each["podAffinityTerm"] for each in preferred]
    return terms


def survives_a_lost_node(documents: Documents, _: Setting) -> Iterator[Finding]:
    """A head on a lost node is replaced within a minute, and its state is not on the same node."""
    heads = [pod for pod in documents.ray_pods() if pod.labels["ray.io/node-type"] == "head"]
    stores = [pod for pod in documents.pods if pod.controller == "StatefulSet" and _is_redis(pod)]
    for head in heads:
        for key in ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"):
            waits = [
                toleration.get("tolerationSeconds", float("inf"))
                for toleration in head.spec.get("tolerations", [])
                if toleration.get("key", key) == key and toleration.get("effect", "NoExecute") == "NoExecute"
            ]
            if min(waits, default=300) > _LONGEST_TOLERATION_S:
                yield Finding(head.owner, f"it stays on a lost node for 300 s: tolerate {key} for a shorter time")
        for store in stores:
            if not (_keeps_apart(head, store) or _keeps_apart(store, head)):
                yield Finding(head.owner, f"nothing keeps it off the node of {store.owner}, which has its state")


def _is_redis(pod: Pod) -> bool:
    return str(pod.main.get("image", "")).partition("@")[0].rpartition("/")[2].startswith("redis:")


def _keeps_apart(pod: Pod, other: Pod) -> bool:
    return any(
        term.get("topologyKey", "").startswith(_NODES_OR_MORE) and selects(term.get("labelSelector"), other.labels)
        for term in _anti_affinity(pod)
    )


def jobs_run_on_gpu_nodes(documents: Documents, _: Setting) -> Iterator[Finding]:
    """A job that fetches a model for GPU workers tolerates their nodes' taint: the cluster may have no other nodes."""
    workers = [pod for pod in documents.ray_pods() if pod.requests("nvidia.com/gpu")]
    shared = {claim for pod in workers for claim in pod.claims()}
    for pod in documents.pods:
        if pod.controller == "Job" and shared & pod.claims() and not pod.tolerates(_GPU_TAINT):
            yield Finding(pod.owner, f"it does not tolerate {_GPU_TAINT}, the taint of its workers' nodes")


def gpus_are_hidden(documents: Documents, setting: Setting) -> Iterator[Finding]:
    """Pods without a GPU of their own see none: with `all`, NVIDIA's runtime shows them every GPU of their node."""
    for pod in documents.ray_pods():
        if pod.requests("nvidia.com/gpu"):
            continue
        for container in pod.containers:
            own = environment_of(documents, pod, container)
            seen = (setting.image_environment | own).get("NVIDIA_VISIBLE_DEVICES")
            if seen is not None and seen not in _NO_GPU:
                which = "" if container is pod.main else f" ({container['name']})"
                yield Finding(pod.owner, f"NVIDIA_VISIBLE_DEVICES={seen} shows it GPUs that other pods use{which}")
