"""The documents that are applied together, and the pods that their controllers create from them."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

__all__ = ["Document", "Documents", "Pod", "name_of", "quantity", "selects"]

Document = dict[str, Any]

_SUFFIXES = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

# What KubeRay 1.7 adds to a pod template: ray-operator/controllers/ray/common/pod.go.
_INIT_RESOURCES = {
    "requests": {"cpu": "200m", "memory": "256Mi"},
    "limits": {"cpu": "200m", "memory": "256Mi"},
}
_AUTOSCALER_RESOURCES = {
    "requests": {"cpu": "500m", "memory": "512Mi"},
    "limits": {"cpu": "500m", "memory": "512Mi"},
}


@dataclass(frozen=True)
class Pod:
    """A kind of pod and how many of it exist."""

    owner: str
    controller: str
    """Kind of the object that creates the pod: RayCluster, StatefulSet, Deployment or Job."""
    labels: dict[str, str]
    spec: Document
    fewest: int
    most: int

    @property
    def containers(self) -> list[Document]:
        """All containers, the init containers first."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def main(self) -> Document:
        """The first regular container, in which Ray runs."""
        first: Document = self.spec["containers"][0]
        return first

    def requests(self, resource: str) -> float:
        """The amount that the scheduler reserves: the sum over the containers, or the largest init container."""

        def of(container: Document) -> float:
            resources = container.get("resources", {})
            # Without a request, the limit counts as the request.
            amount = resources.get("requests", {}).get(resource) or resources.get("limits", {}).get(resource)
            return quantity(amount or 0)

        init = [of(container) for container in self.spec.get("initContainers", [])]
        return max([sum(of(container) for container in self.spec["containers"]), *init])

    def claims(self) -> set[str]:
        """Names of the persistent volume claims that the pod mounts."""
        volumes = self.spec.get("volumes", [])
        return {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume}

    def tolerates(self, taint: str) -> bool:
        """Whether a toleration covers the taint `key:effect`."""
        key, _, effect = taint.partition(":")
        return any(
            toleration.get("key", key) == key
            and toleration.get("effect", effect) == effect
            # The taint's value differs between clouds.
            and toleration.get("operator", "Equal") == "Exists"
            for toleration in self.spec.get("tolerations", [])
        )


class Documents:
    """A set of documents with the objects that other checks ask for."""

    def __init__(self, documents: Iterable[Document]) -> None:
        given = [_without_nulls(document) for document in documents if document]
        # A List, as kubectl prints it, stands for its items.
        lists = [document["items"] if document.get("kind") == "List" else [document] for document in given]
        self.all = [document for items in lists for document in items]

    def of_kind(self, *kinds: str) -> list[Document]:
        """The documents of some kinds, in order."""
        return [document for document in self.all if document["kind"] in kinds]

    def named(self, kind: str, name: str) -> Document | None:
        """A document by kind and name."""
        return next((found for found in self.of_kind(kind) if found["metadata"]["name"] == name), None)

    @cached_property
    def pods(self) -> list[Pod]:
        """Every kind of pod that the documents lead to."""
        return [pod for document in self.all for pod in _pods_of(document)]

    def ray_pods(self) -> list[Pod]:
        """The pods of Ray clusters, heads first."""
        pods = [pod for pod in self.pods if pod.controller == "RayCluster"]
        return sorted(pods, key=lambda pod: pod.labels["ray.io/node-type"] != "head")

    def serve_configs(self) -> list[Document]:
        """The Serve configuration of every RayService."""
        return [yaml.safe_load(service["spec"].get("serveConfigV2", "{}")) for service in self.of_kind("RayService")]

    def models(self) -> list[Document]:
        """The models of all Serve configurations, by their own arguments."""
        applications = [application for config in self.serve_configs() for application in config["applications"]]
        arguments = [application.get("args", {}) for application in applications]
        listed = [model for part in arguments for model in part.get("models", [])]
        return [part for part in listed or arguments if "checkpoint" in part]


def _without_nulls(value: Any) -> Any:
    """Kubernetes reads a null field as an absent one."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def name_of(document: Document) -> str:
    """Kind and name."""
    return f"{document['kind']}/{document['metadata']['name']}"


def quantity(text: str | float) -> float:
    """A Kubernetes quantity as a number: cores, bytes or pieces."""
    if isinstance(text, int | float):
        return float(text)
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * _SUFFIXES[suffix]
    return float(text)


def selects(selector: Document | None, labels: dict[str, str]) -> bool:
    """Whether a label selector matches labels. An empty selector matches everything, null nothing."""
    if selector is None:
        return False
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    return all(_matches(expression, labels) for expression in selector.get("matchExpressions", []))


def _matches(expression: Document, labels: dict[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", [])
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case _:
            return key not in labels


def _pods_of(document: Document) -> Iterator[Pod]:
    spec = document.get("spec", {})
    match document["kind"]:
        case "RayService":
            yield from _pods_of_cluster(name_of(document), spec["rayClusterConfig"])
        case "RayCluster":
            yield from _pods_of_cluster(name_of(document), spec)
        case "StatefulSet" | "Deployment" as kind:
            replicas = spec.get("replicas", 1)
            yield _pod(name_of(document), kind, spec["template"], replicas, replicas)
        case "Job" as kind:
            yield _pod(name_of(document), kind, spec["template"], 1, 1)
        case "CronJob":
            yield _pod(name_of(document), "Job", spec["jobTemplate"]["spec"]["template"], 1, 1)
        case "Pod" as kind:
            yield _pod(name_of(document), kind, document, 1, 1)


def _pod(owner: str, controller: str, template: Document, fewest: int, most: int) -> Pod:
    return Pod(owner, controller, template.get("metadata", {}).get("labels", {}), template["spec"], fewest, most)


def _pods_of_cluster(owner: str, cluster: Document) -> Iterator[Pod]:
    """The pods of a RayCluster, with the containers and labels that KubeRay adds."""
    head = copy.deepcopy(cluster["headGroupSpec"]["template"])
    if cluster.get("enableInTreeAutoscaling"):
        options = cluster.get("autoscalerOptions", {})
        chosen = {key: options[key] for key in ("securityContext", "image", "volumeMounts", "env") if key in options}
        resources = options.get("resources", _AUTOSCALER_RESOURCES)
        image = head["spec"]["containers"][0].get("image")
        head["spec"]["containers"].append({"name": "autoscaler", "image": image, "resources": resources, **chosen})
    yield _ray_pod(f"{owner} head", head, "head", "headgroup", 1, 1)

    for group in cluster.get("workerGroupSpecs", []):
        worker = copy.deepcopy(group["template"])
        ray = worker["spec"]["containers"][0]
        copied = {key: ray[key] for key in ("image", "securityContext", "env", "volumeMounts") if key in ray}
        waiting = {"name": "wait-gcs-ready", "resources": _INIT_RESOURCES, **copied}
        worker["spec"].setdefault("initContainers", []).append(waiting)
        hosts = group.get("numOfHosts", 1)
        fewest, most = group["minReplicas"] * hosts, group["maxReplicas"] * hosts
        yield _ray_pod(f"{owner} {group['groupName']}", worker, "worker", group["groupName"], fewest, most)


def _ray_pod(owner: str, template: Document, node_type: str, group: str, fewest: int, most: int) -> Pod:
    added = {"ray.io/is-ray-node": "yes", "ray.io/node-type": node_type, "ray.io/group": group}
    template.setdefault("metadata", {})["labels"] = template.get("metadata", {}).get("labels", {}) | added
    return _pod(owner, "RayCluster", template, fewest, most)
