"""Kubernetes' rules between fields and between objects, which its schemas do not express."""

import re
from collections import Counter
from collections.abc import Iterator

from cluster.validate.documents import Document, Documents, Pod, name_of, quantity, selects
from cluster.validate.finding import Finding, Setting

__all__ = ["references_exist", "valid_objects", "valid_pods"]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LONGEST_NAME = {"Service": 63, "Job": 63, "StatefulSet": 52, "CronJob": 52}
"""By kind, where a label of the pods has the name. For a StatefulSet, it also has a hash of up to 10 characters."""
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_FIELDS = {
    "secretRef": "Secret",
    "secretKeyRef": "Secret",
    "configMapRef": "ConfigMap",
    "configMapKeyRef": "ConfigMap",
}


def valid_objects(documents: Documents, _: Setting) -> Iterator[Finding]:
    """Names are unique and well-formed; selectors match the pods of their own template."""
    for document in documents.all:
        metadata = document["metadata"]
        limit = _LONGEST_NAME.get(document["kind"], 253)
        pattern = _SERVICE_NAME if document["kind"] == "Service" else _NAME
        if not pattern.fullmatch(metadata["name"]):
            yield Finding(name_of(document), "its name is not a DNS name")
        elif len(metadata["name"]) > limit:
            yield Finding(name_of(document), f"its name has more than {limit} characters")
        yield from _label_faults(name_of(document), metadata.get("labels", {}))
        spec = document.get("spec", {})
        own = spec.get("template", {}).get("metadata", {}).get("labels", {})
        if document["kind"] in ("StatefulSet", "Deployment") and not selects(spec["selector"], own):
            yield Finding(name_of(document), "its selector does not match its own pods")
    for pod in documents.pods:
        yield from _label_faults(pod.owner, pod.labels)
    counts = Counter(name_of(document) for document in documents.all if document["kind"] != "PersistentVolumeClaim")
    yield from (Finding(name, f"{count} documents have this name") for name, count in counts.items() if count > 1)


def _label_faults(where: str, labels: dict[str, str]) -> Iterator[Finding]:
    for key, value in labels.items():
        if len(value) > 63 or not _LABEL_VALUE.fullmatch(value):
            yield Finding(where, f"the label {key} has the value {value}")


def valid_pods(documents: Documents, _: Setting) -> Iterator[Finding]:
    """Mounts name volumes, limits are not below requests, and names are unique in a pod."""
    for pod in documents.pods:
        for message in _pod_faults(pod):
            yield Finding(pod.owner, message)


def _pod_faults(pod: Pod) -> Iterator[str]:
    names = Counter(container["name"] for container in pod.containers)
    yield from (f"two containers are named {name}" for name, count in names.items() if count > 1)
    volumes = Counter(volume["name"] for volume in pod.spec.get("volumes", []))
    yield from (f"two volumes are named {name}" for name, count in volumes.items() if count > 1)
    # A StatefulSet makes volumes of its templates; the ones of KubeRay are not in the documents.
    for container in pod.containers:
        yield from _container_faults(container, volumes if pod.controller != "StatefulSet" else None)
    if pod.controller == "Job" and pod.spec.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "a job needs the restartPolicy Never or OnFailure"


def _container_faults(container: Document, volumes: Counter[str] | None) -> Iterator[str]:
    name = f"the container {container['name']}"
    mounts = container.get("volumeMounts", [])
    if volumes is not None:
        yield from (f"{name} mounts {each['name']}, no volume" for each in mounts if each["name"] not in volumes)
    paths = Counter(mount["mountPath"] for mount in mounts)
    yield from (f"{name} mounts two volumes at {path}" for path, count in paths.items() if count > 1)
    ports = Counter((port["containerPort"], port.get("protocol", "TCP")) for port in container.get("ports", []))
    yield from (f"{name} lists the port {port} twice" for (port, _), count in ports.items() if count > 1)
    for port in container.get("ports", []):
        if "name" in port and (len(port["name"]) > 15 or not _PORT_NAME.fullmatch(port["name"])):
            yield f"{name} has a port with the name {port['name']}, longer than 15 characters or malformed"
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for resource, limit in limits.items():
        if quantity(requests.get(resource, 0)) > quantity(limit):
            yield f"{name} requests more {resource} than its limit"
    for resource in requests.keys() | limits.keys():
        # Extended resources cannot be overcommitted.
        if "/" in resource and requests.get(resource, limits.get(resource)) != limits.get(resource):
            yield f"{name} needs a limit for {resource} that equals the request"


def references_exist(documents: Documents, setting: Setting) -> Iterator[Finding]:
    """Every ConfigMap and Secret that a pod names is a document, or an object that the instructions create."""
    known = {name_of(document) for document in documents.all} | (setting.external or set())
    for pod in documents.pods:
        for kind, name in _references(pod):
            if setting.external is not None and f"{kind}/{name}" not in known:
                yield Finding(pod.owner, f"it needs the {kind} {name}, which nothing creates")
    for service in documents.of_kind("Service"):
        selector = {"matchLabels": service["spec"].get("selector", {})}
        if service["spec"].get("selector") and not any(selects(selector, pod.labels) for pod in documents.pods):
            yield Finding(name_of(service), "its selector matches no pod")
    for policy in documents.of_kind("NetworkPolicy"):
        if not any(selects(policy["spec"]["podSelector"], pod.labels) for pod in documents.pods):
            yield Finding(name_of(policy), "its podSelector matches no pod")


def _references(pod: Pod) -> Iterator[tuple[str, str]]:
    """Kind and name of each object that must exist before the pod starts."""
    for volume in pod.spec.get("volumes", []):
        sources = [volume, *volume.get("projected", {}).get("sources", [])]
        for source in sources:
            if "secret" in source and not source["secret"].get("optional"):
                yield "Secret", source["secret"].get("secretName") or source["secret"]["name"]
            if "configMap" in source and not source["configMap"].get("optional"):
                yield "ConfigMap", source["configMap"]["name"]
    for container in pod.containers:
        references = [*container.get("envFrom", []), *(each.get("valueFrom", {}) for each in container.get("env", []))]
        for reference in references:
            for field, kind in _FIELDS.items():
                if field in reference and not reference[field].get("optional"):
                    yield kind, reference[field]["name"]
