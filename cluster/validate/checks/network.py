"""Which connections the network policies allow, and which the configuration needs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cluster.validate.documents import Document, Documents, Pod, selects
from cluster.validate.finding import Finding, Setting

__all__ = ["METADATA_SERVER", "egress", "metadata_server", "ray_ports", "reachable_from"]

METADATA_SERVER = "169.254.169.254/32"
"""The address at which clouds give a pod its credentials (workload identity)."""


@dataclass(frozen=True)
class _Destination:
    purpose: str
    port: int
    pod: Pod | None = None
    """Null: outside of the cluster."""
    protocol: str = "TCP"


def egress(documents: Documents, _: Setting) -> Iterator[Finding]:
    """Ray's pods reach everything that their configuration names."""
    for pod in documents.ray_pods():
        for destination in _destinations(documents, pod):
            if not _allows(documents, pod, destination):
                where = f"port {destination.port}/{destination.protocol}"
                yield Finding(pod.owner, f"no network policy lets it reach {destination.purpose} on {where}")


def metadata_server(documents: Documents, _: Setting) -> Iterator[Finding]:
    """Only pods that read from a bucket reach the metadata server, which gives out the node's credentials."""
    from_buckets = any(_is_bucket(str(model["checkpoint"]["source"])) for model in documents.models())
    jobs = [pod for pod in documents.pods if pod.controller == "Job"]
    jobs_may = from_buckets or any(map(_pulls_from_bucket, jobs))  # one policy is for all jobs
    for pod in [*documents.ray_pods(), *jobs]:
        reads = (from_buckets and pod not in jobs) or _pulls_from_bucket(pod)
        rules = list(_rules(documents, pod, "Egress"))
        exact = any(_peer_blocks(rule) == {METADATA_SERVER} and _covers_port(rule, 80, "TCP") for rule in rules)
        wider = [rule for rule in rules if _reaches_everything(rule) and _covers_port(rule, 80, "TCP")]
        limited = any(_applies(policy, pod, "Egress") for policy in documents.of_kind("NetworkPolicy"))
        if wider:
            yield Finding(pod.owner, "a rule opens port 80 to all addresses, and so the metadata server")
        elif reads and limited and not exact:
            yield Finding(pod.owner, f"it reads from a bucket, but no rule opens {METADATA_SERVER} on port 80")
        elif exact and not reads and not (jobs_may and pod in jobs):
            yield Finding(pod.owner, f"a rule opens {METADATA_SERVER}, but it reads from no bucket")
        if _pulls_from_bucket(pod) and "serviceAccountName" not in pod.spec:
            yield Finding(pod.owner, "it fetches from a bucket without a service account, so without an identity")


def _is_bucket(source: str) -> bool:
    return source.startswith(("gs://", "s3://"))


def _pulls_from_bucket(pod: Pod) -> bool:
    words = [word for container in pod.containers for word in container.get("command", [])]
    return "pull" in words and any(_is_bucket(word) for word in words)


def ray_ports(documents: Documents, _: Setting) -> Iterator[Finding]:
    """Clients reach only the service's port: whoever reaches Ray's ports can run code."""
    for pod in documents.ray_pods():
        if not any(_applies(policy, pod, "Ingress") for policy in documents.of_kind("NetworkPolicy")):
            yield Finding(pod.owner, "no network policy limits who reaches it")
        for rule in _rules(documents, pod, "Ingress"):
            for port in (6379, 8265, 10001, 52365):
                if _covers_port(rule, port, "TCP") and _admits_anyone(rule):
                    yield Finding(pod.owner, f"a rule opens Ray's port {port} to every pod of a namespace")


def reachable_from(documents: Documents, pod: Pod, port: int, labels: dict[str, str]) -> bool:
    """Whether every pod of a namespace with these labels reaches a port of a pod."""
    policies = documents.of_kind("NetworkPolicy")
    if not any(_applies(policy, pod, "Ingress") for policy in policies):
        return True
    return any(
        _covers_port(rule, port, "TCP")
        and any(
            peer.get("namespaceSelector") and selects(peer["namespaceSelector"], labels) and "podSelector" not in peer
            for peer in rule.get("from") or [{"namespaceSelector": {"matchLabels": labels}}]
        )
        for rule in _rules(documents, pod, "Ingress")
    )


def _destinations(documents: Documents, pod: Pod) -> Iterator[_Destination]:
    is_head = pod.labels["ray.io/node-type"] == "head"
    yield _Destination("the cluster's DNS", 53, protocol="UDP")
    for other in documents.ray_pods():
        yield _Destination(f"{other.owner}", 6379, other)
    if is_head and any(container["name"] == "autoscaler" for container in pod.containers):
        yield _Destination("the Kubernetes API", 443)
        yield _Destination("the Kubernetes API", 6443)
    for service in documents.of_kind("RayService"):
        options = service["spec"]["rayClusterConfig"].get("gcsFaultToleranceOptions", {})
        if is_head and "redisAddress" in options:
            yield _redis(documents, options["redisAddress"], "the Redis with the head's state")
    for text in _texts(documents.serve_configs()):
        if text.startswith(("redis://", "rediss://")):
            yield _redis(documents, urlsplit(text).netloc.rpartition("@")[2], "the Redis with the rate limits")
        elif _is_bucket(text):
            yield _Destination(f"the bucket of {text}", 443)
    for arguments in _arguments(documents):
        endpoint = arguments.get("tracing", {}).get("otlp_endpoint")
        if endpoint:
            yield _collector(documents, endpoint)


def _redis(documents: Documents, address: str, purpose: str) -> _Destination:
    host, _, port = address.removeprefix("redis://").removeprefix("rediss://").partition(":")
    return _Destination(purpose, int(port.split("/")[0] or 6379), _behind(documents, host))


def _collector(documents: Documents, url: str) -> _Destination:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return _Destination("the collector of traces", port, _behind(documents, parts.hostname or ""))


def _behind(documents: Documents, host: str) -> Pod | None:
    """The pod behind a Service of these documents; null for another host."""
    service = documents.named("Service", host.split(".")[0])
    if service is None:
        return None
    selector = {"matchLabels": service["spec"]["selector"]}
    return next((pod for pod in documents.pods if selects(selector, pod.labels)), None)


def _arguments(documents: Documents) -> list[Document]:
    return [part.get("args", {}) for config in documents.serve_configs() for part in config["applications"]]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (text for inner in value.values() for text in _texts(inner))
    elif isinstance(value, list):
        yield from (text for inner in value for text in _texts(inner))
    elif isinstance(value, str):
        yield value


def _allows(documents: Documents, pod: Pod, destination: _Destination) -> bool:
    policies = documents.of_kind("NetworkPolicy")
    if not any(_applies(policy, pod, "Egress") for policy in policies):
        return True
    return any(
        _covers_port(rule, destination.port, destination.protocol) and _reaches(rule, destination.pod)
        for rule in _rules(documents, pod, "Egress")
    )


def _applies(policy: Document, pod: Pod, direction: str) -> bool:
    spec = policy["spec"]
    types = spec.get("policyTypes", ["Ingress", *(["Egress"] if "egress" in spec else [])])
    return direction in types and selects(spec["podSelector"], pod.labels)


def _rules(documents: Documents, pod: Pod, direction: str) -> Iterator[Document]:
    for policy in documents.of_kind("NetworkPolicy"):
        if _applies(policy, pod, direction):
            yield from policy["spec"].get(direction.lower(), [])


def _covers_port(rule: Document, port: int, protocol: str) -> bool:
    def covers(entry: Document) -> bool:
        first = entry.get("port", port)
        if not isinstance(first, int) or entry.get("protocol", "TCP") != protocol:
            return False
        return first <= port <= int(entry.get("endPort", first))

    return "ports" not in rule or any(covers(entry) for entry in rule["ports"])


def _reaches(rule: Document, pod: Pod | None) -> bool:
    """Whether a rule's peers include a pod of the same namespace, or (null) a host outside of the cluster."""
    peers = rule.get("to", [])
    if not peers:
        return True
    if pod is None:
        return any("ipBlock" in peer and peer["ipBlock"]["cidr"] != METADATA_SERVER for peer in peers)
    return any("ipBlock" not in peer and _selects_here(peer, pod.labels) for peer in peers)


def _selects_here(peer: Document, labels: dict[str, str]) -> bool:
    # A namespace selector with terms means another namespace, whose labels these documents do not show.
    if peer.get("namespaceSelector"):
        return False
    return selects(peer.get("podSelector", {}), labels)


def _peer_blocks(rule: Document) -> set[str]:
    return {peer.get("ipBlock", {}).get("cidr", "") for peer in rule.get("to", [])}


def _reaches_everything(rule: Document) -> bool:
    peers = rule.get("to", [])
    return not peers or any(
        block.get("cidr") == "0.0.0.0/0" and METADATA_SERVER not in block.get("except", [])
        for block in (peer.get("ipBlock", {}) for peer in peers)
    )


def _admits_anyone(rule: Document) -> bool:
    peers = rule.get("from", [])
    return not peers or any("podSelector" not in peer and "ipBlock" not in peer for peer in peers)
