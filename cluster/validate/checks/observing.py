"""Whether operators see what happens: metrics of every exporter, and the service's log."""

from collections.abc import Iterator

from cluster.validate.checks.network import reachable_from
from cluster.validate.documents import Document, Documents, Pod, selects
from cluster.validate.finding import Finding, Setting

__all__ = ["environment_of", "exporters", "logs_are_visible"]

_LOG_FOLDER = "/tmp/ray"  # noqa: S108, the folder of Ray's sessions in a container


def exporters(documents: Documents, _: Setting) -> Iterator[Finding]:
    """HAProxy's exporter, which listens on all of a pod's addresses, is off, or scraped and closed to other pods."""
    monitors = documents.of_kind("PodMonitor")
    for pod in documents.ray_pods():
        environment = environment_of(documents, pod)
        if environment.get("RAY_SERVE_ENABLE_HA_PROXY") != "1" or pod.labels["ray.io/node-type"] == "head":
            continue
        if environment.get("RAY_SERVE_HAPROXY_METRICS_ENABLED", "1") == "0":
            continue
        number = int(environment.get("RAY_SERVE_HAPROXY_METRICS_PORT", "9101"))
        port = next((port for port in pod.main.get("ports", []) if port["containerPort"] == number), None)
        if port is None:
            yield Finding(pod.owner, f"HAProxy's exporter listens on {number}, which is not among its ports")
            continue
        if monitors and not any(_scrapes(monitor, pod, port) for monitor in monitors):
            yield Finding(pod.owner, f"no PodMonitor scrapes HAProxy's exporter on {number}")
        if not reachable_from(documents, pod, number, labels={"kubernetes.io/metadata.name": "monitoring"}):
            yield Finding(pod.owner, f"no network policy lets Prometheus reach HAProxy's exporter on {number}")
        if reachable_from(documents, pod, number, labels={"rerank-service/client": "true"}):
            yield Finding(pod.owner, f"clients reach HAProxy's exporter on {number}")


def _scrapes(monitor: Document, pod: Pod, port: Document) -> bool:
    endpoints = monitor["spec"]["podMetricsEndpoints"]
    named = any(port["name"] == endpoint.get("port") for endpoint in endpoints)
    return named and selects(monitor["spec"]["selector"], pod.labels)


def logs_are_visible(documents: Documents, _: Setting) -> Iterator[Finding]:
    """`kubectl logs` shows requests: Serve logs to standard error, or another container prints its files."""
    for pod in documents.ray_pods():
        environment = environment_of(documents, pod)
        default = "0" if environment.get("RAY_SERVE_THROUGHPUT_OPTIMIZED") == "1" else "1"
        if environment.get("RAY_LOG_TO_STDERR") == "1" and environment.get("RAY_SERVE_LOG_TO_STDERR", default) == "1":
            continue
        volumes = {
            mount["name"] for mount in pod.main.get("volumeMounts", []) if mount["mountPath"].rstrip("/") == _LOG_FOLDER
        }
        others = [
            container for container in pod.containers if container["name"] not in (pod.main["name"], "autoscaler")
        ]
        readers = [
            container
            for container in others
            if any(mount["name"] in volumes for mount in container.get("volumeMounts", []))
        ]
        if not readers:
            yield Finding(pod.owner, "Serve's log stays in files: no container of the pod prints it")


def environment_of(documents: Documents, pod: Pod, container: Document | None = None) -> dict[str, str]:
    """The variables of a container (default: the pod's main one), with those of its ConfigMaps."""
    container = container or pod.main
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        document = documents.named("ConfigMap", source.get("configMapRef", {}).get("name", ""))
        found |= document["data"] if document else {}
    return found | {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}
