"""Faults to put into rendered manifests: each changes the documents as somebody could, by hand or by an overlay."""

import copy
from collections.abc import Callable
from typing import Any

import yaml

from cluster.validate.documents import Document, Documents, selects

__all__ = ["FAULTS", "Fault", "with_fault"]

Fault = Callable[[list[Document]], None]


def with_fault(documents: list[Document], fault: Fault) -> list[Document]:
    """A copy of the documents with the fault."""
    changed = copy.deepcopy(documents)
    fault(changed)
    return changed


def find(documents: list[Document], kind: str) -> Document:
    return next(document for document in documents if document["kind"] == kind)


def cluster_of(documents: list[Document]) -> Document:
    found: Document = find(documents, "RayService")["spec"]["rayClusterConfig"]
    return found


def head_of(documents: list[Document]) -> Document:
    found: Document = cluster_of(documents)["headGroupSpec"]["template"]["spec"]
    return found


def worker_of(documents: list[Document]) -> Document:
    """The template of the first worker group."""
    found: Document = cluster_of(documents)["workerGroupSpecs"][0]["template"]["spec"]
    return found


def change_serve_config(documents: list[Document], change: Callable[[Document], None]) -> None:
    spec = find(documents, "RayService")["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    change(config)
    spec["serveConfigV2"] = yaml.safe_dump(config)


def budget_by_max_unavailable(documents: list[Document]) -> None:
    group = cluster_of(documents)["workerGroupSpecs"][0]["groupName"]
    _replace_budgets(documents, {"maxUnavailable": 1}, group)


def budget_that_needs_every_pod(documents: list[Document]) -> None:
    group = cluster_of(documents)["workerGroupSpecs"][0]
    _replace_budgets(documents, {"minAvailable": group["minReplicas"]}, group["groupName"])


def _replace_budgets(documents: list[Document], limit: Document, group: str) -> None:
    documents[:] = [document for document in documents if document["kind"] != "PodDisruptionBudget"]
    selector = {"matchLabels": {"ray.io/group": group}}
    documents.append(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "workers"},
            "spec": {**limit, "selector": selector},
        }
    )


def claim_defined_twice(documents: list[Document]) -> None:
    other = copy.deepcopy(find(documents, "PersistentVolumeClaim"))
    other["spec"]["resources"]["requests"]["storage"] = "11Gi"
    documents.append(other)


def claim_for_one_node(documents: list[Document]) -> None:
    if find(documents, "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOnce"]:
        raise KeyError("the claim is for one node, and its only user is on this node")
    for document in documents:
        if document["kind"] == "PersistentVolumeClaim":
            document["spec"]["accessModes"] = ["ReadWriteOnce"]


def model_that_nothing_pulls(documents: list[Document]) -> None:
    def move(config: Document) -> None:
        for application in config["applications"]:
            for model in [*application["args"].get("models", []), application["args"]]:
                if "checkpoint" in model:
                    model["checkpoint"]["source"] = "/models/elsewhere"

    change_serve_config(documents, move)


def job_without_tolerations(documents: list[Document]) -> None:
    if not any(pod.requests("nvidia.com/gpu") for pod in Documents(documents).ray_pods()):
        raise KeyError("the set has no GPU")
    del find(documents, "Job")["spec"]["template"]["spec"]["tolerations"]


def image_of_the_other_variant(documents: list[Document]) -> None:
    def swap(text: str) -> str:
        return text.replace("-cuda", "-x").replace("-cpu", "-cuda").replace("-x", "-cpu")

    for spec in (head_of(documents), worker_of(documents)):
        for container in spec["containers"]:
            container["image"] = swap(container["image"])


def external_redis(documents: list[Document]) -> None:
    options = cluster_of(documents).setdefault("gcsFaultToleranceOptions", {})
    options["redisAddress"] = "redis.example.com:6390"


def collector_on_a_closed_port(documents: list[Document]) -> None:
    def trace(config: Document) -> None:
        config["applications"][-1]["args"]["tracing"] = {"otlp_endpoint": "http://collector.example.com:4999/v1/traces"}

    change_serve_config(documents, trace)


def model_in_a_bucket(documents: list[Document]) -> None:
    def move(config: Document) -> None:
        for application in config["applications"]:
            for model in [*application["args"].get("models", []), application["args"]]:
                if "checkpoint" in model:
                    if model["checkpoint"]["source"].startswith(("gs://", "s3://")):
                        raise KeyError("the model is in a bucket already")
                    model["checkpoint"] |= {"source": "gs://bucket/model", "revision": "0" * 64}

    change_serve_config(documents, move)


def job_without_an_identity(documents: list[Document]) -> None:
    job = find(documents, "Job")["spec"]["template"]["spec"]
    container = job["containers"][0]
    container["command"] = ["rerank-service", "pull", "s3://bucket/model", *container["command"][3:]]
    job.pop("serviceAccountName", None)


def metadata_server_for_everyone(documents: list[Document]) -> None:
    rule: Document = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 80}]}
    rules_of_ray(documents, "egress").append(rule)


def rays_ports_for_clients(documents: list[Document]) -> None:
    rule: Document = {"from": [{"namespaceSelector": {}}]}
    rules_of_ray(documents, "ingress").append(rule)


def rules_of_ray(documents: list[Document], direction: str) -> list[Document]:
    """The rules of the first network policy of Ray's pods that has rules in this direction."""
    head = Documents(documents).ray_pods()[0]
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    return next(spec[direction] for spec in policies if direction in spec and selects(spec["podSelector"], head.labels))


def head_that_stays_on_a_lost_node(documents: list[Document]) -> None:
    head_of(documents)["tolerations"] = []


def head_and_redis_on_one_node(documents: list[Document]) -> None:
    head_of(documents).pop("affinity", None)
    find(documents, "StatefulSet")["spec"]["template"]["spec"].pop("affinity", None)


def autoscaler_with_privileges(documents: list[Document]) -> None:
    cluster = cluster_of(documents)
    cluster["enableInTreeAutoscaling"] = True
    cluster.setdefault("autoscalerOptions", {})["securityContext"] = {"readOnlyRootFilesystem": True}


def pod_without_seccomp(documents: list[Document]) -> None:
    del worker_of(documents)["securityContext"]["seccompProfile"]


def writable_root(documents: list[Document]) -> None:
    worker_of(documents)["containers"][0]["securityContext"]["readOnlyRootFilesystem"] = False


def redis_with_holes(documents: list[Document]) -> None:
    image = "redis:7.4.2@sha256:" + "2" * 64
    find(documents, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]["image"] = image


def image_by_tag(documents: list[Document]) -> None:
    container = worker_of(documents)["containers"][0]
    container["image"] = container["image"].partition("@")[0]


def head_too_large(documents: list[Document]) -> None:
    head_of(documents)["containers"][0]["resources"] = {"requests": {"cpu": "64", "memory": "8Gi"}}


def head_sees_gpus(documents: list[Document]) -> None:
    variables = head_of(documents)["containers"][0].setdefault("env", [])
    variables[:] = [each for each in variables if each["name"] != "NVIDIA_VISIBLE_DEVICES"]
    variables.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"})


def autoscaler_sees_gpus(documents: list[Document]) -> None:
    variables = cluster_of(documents)["autoscalerOptions"].setdefault("env", [])
    variables[:] = [each for each in variables if each["name"] != "NVIDIA_VISIBLE_DEVICES"]
    variables.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"})


def gpus_shown_by_a_config_map(documents: list[Document]) -> None:
    container = head_of(documents)["containers"][0]
    container["env"] = [each for each in container["env"] if each["name"] != "NVIDIA_VISIBLE_DEVICES"]
    find(documents, "ConfigMap")["data"]["NVIDIA_VISIBLE_DEVICES"] = "all"


def redis_without_a_password(documents: list[Document]) -> None:
    container = find(documents, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    container["command"] = ["redis-server", "--appendonly", "yes"]


def head_without_the_password(documents: list[Document]) -> None:
    del cluster_of(documents)["gcsFaultToleranceOptions"]["redisPassword"]


def exporter_not_scraped(documents: list[Document]) -> None:
    ports = worker_of(documents)["containers"][0]["ports"]
    ports[:] = [port for port in ports if port["containerPort"] != 9101]


def exporter_open_to_clients(documents: list[Document]) -> None:
    selector = {"matchLabels": {"rerank-service/client": "true"}}
    rule = {"from": [{"namespaceSelector": selector}], "ports": [{"port": 9101}]}
    rules_of_ray(documents, "ingress").append(rule)


def logs_in_files_only(documents: list[Document]) -> None:
    for spec in (head_of(documents), worker_of(documents)):
        del spec["containers"][1:]
        for container in spec["containers"]:
            variables: list[Any] = container.get("env", [])
            variables[:] = [each for each in variables if each["name"] != "RAY_LOG_TO_STDERR"]
    for document in documents:
        if document["kind"] == "ConfigMap":
            document["data"].pop("RAY_LOG_TO_STDERR", None)


def tls_without_its_gate(documents: list[Document]) -> None:
    cluster_of(documents)["tlsOptions"] = {"enabled": True}


def more_at_least_than_at_most(documents: list[Document]) -> None:
    group = cluster_of(documents)["workerGroupSpecs"][0]
    group["minReplicas"] = group["maxReplicas"] + 1


def resources_in_two_places(documents: list[Document]) -> None:
    cluster_of(documents)["workerGroupSpecs"][0]["rayStartParams"]["num-cpus"] = "6"


def misspelt_field(documents: list[Document]) -> None:
    group = cluster_of(documents)["workerGroupSpecs"][0]
    group["maxReplica"] = group["maxReplicas"]


def mount_without_volume(documents: list[Document]) -> None:
    mounts = worker_of(documents)["containers"][0].setdefault("volumeMounts", [])
    mounts.append({"name": "absent", "mountPath": "/absent"})


def secret_that_nothing_creates(documents: list[Document]) -> None:
    head_of(documents)["containers"][0].setdefault("envFrom", []).append({"secretRef": {"name": "absent"}})


def label_with_a_space(documents: list[Document]) -> None:
    find(documents, "ConfigMap")["metadata"]["labels"] = {"team": "ranking search"}


def pod_with_a_long_label(documents: list[Document]) -> None:
    cluster_of(documents)["workerGroupSpecs"][0]["template"]["metadata"]["labels"]["team"] = "x" * 64


def store_with_a_long_name(documents: list[Document]) -> None:
    find(documents, "StatefulSet")["metadata"]["name"] = "s" * 53  # its pods never start


def _change_models(documents: list[Document], section: str, **settings: Any) -> None:
    """Changes a section of all models, in the ingress's application and in their own."""

    def change(config: Document) -> None:
        for application in config["applications"]:
            for model in [*application["args"].get("models", []), application["args"]]:
                if "checkpoint" in model:
                    model[section] = model.get(section, {}) | settings

    change_serve_config(documents, change)


def misspelt_setting_of_the_service(documents: list[Document]) -> None:
    _change_models(documents, "engine", dtpye="float32")


def replica_larger_than_a_worker(documents: list[Document]) -> None:
    _change_models(documents, "replica", num_cpus=64, tokeniser_threads=2)


def more_replicas_than_workers_hold(documents: list[Document]) -> None:
    _change_models(documents, "autoscaling", max_replicas=1_000)


def ingress_that_bypasses_an_incremental_upgrade(documents: list[Document]) -> None:
    service = find(documents, "RayService")
    cluster = service["spec"]["rayClusterConfig"]
    if not cluster["enableInTreeAutoscaling"]:
        raise KeyError("an incremental upgrade needs the autoscaler")
    options = {"gatewayClassName": "x", "stepSizePercent": 10, "intervalSeconds": 10, "maxSurgePercent": 20}
    service["spec"]["upgradeStrategy"] = {"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": options}
    _ingress(documents, f"{service['metadata']['name']}-serve-svc")


def ingress_to_nowhere(documents: list[Document]) -> None:
    _ingress(documents, "rerank-serve")


def _ingress(documents: list[Document], service: str) -> None:
    backend = {"service": {"name": service, "port": {"number": 8000}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    rule = {"host": "rerank.example.com", "http": {"paths": [path]}}
    ingress = {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "outside"}}
    documents.append({**ingress, "spec": {"rules": [rule]}})


FAULTS: list[tuple[Fault, str]] = [
    (budget_by_max_unavailable, "disruption-budgets"),
    (budget_that_needs_every_pod, "disruption-budgets"),
    (claim_defined_twice, "claims"),
    (claim_for_one_node, "claims"),
    (model_that_nothing_pulls, "models-are-pulled"),
    (job_without_tolerations, "jobs-run-on-gpu-nodes"),
    (image_of_the_other_variant, "image-variant"),
    (external_redis, "egress"),
    (collector_on_a_closed_port, "egress"),
    (model_in_a_bucket, "metadata-server"),
    (job_without_an_identity, "metadata-server"),
    (metadata_server_for_everyone, "metadata-server"),
    (rays_ports_for_clients, "ray-ports"),
    (head_that_stays_on_a_lost_node, "survives-a-lost-node"),
    (head_and_redis_on_one_node, "survives-a-lost-node"),
    (autoscaler_with_privileges, "pod-security"),
    (pod_without_seccomp, "pod-security"),
    (writable_root, "read-only-root"),
    (redis_with_holes, "redis-is-fixed"),
    (image_by_tag, "images-are-pinned"),
    (head_too_large, "fits-nodes"),
    (head_sees_gpus, "gpus-are-hidden"),
    (autoscaler_sees_gpus, "gpus-are-hidden"),
    (gpus_shown_by_a_config_map, "gpus-are-hidden"),
    (redis_without_a_password, "redis-has-a-password"),
    (head_without_the_password, "redis-has-a-password"),
    (exporter_not_scraped, "exporters"),
    (exporter_open_to_clients, "exporters"),
    (logs_in_files_only, "logs-are-visible"),
    (tls_without_its_gate, "kuberay-accepts"),
    (more_at_least_than_at_most, "kuberay-accepts"),
    (resources_in_two_places, "kuberay-accepts"),
    (misspelt_field, "schemas"),
    (mount_without_volume, "valid-pods"),
    (secret_that_nothing_creates, "references-exist"),
    (label_with_a_space, "valid-objects"),
    (pod_with_a_long_label, "valid-objects"),
    (store_with_a_long_name, "valid-objects"),
    (misspelt_setting_of_the_service, "service-accepts"),
    (replica_larger_than_a_worker, "replicas-fit"),
    (more_replicas_than_workers_hold, "replicas-fit"),
    (ingress_that_bypasses_an_incremental_upgrade, "routes-lead-to-the-service"),
    (ingress_to_nowhere, "routes-lead-to-the-service"),
]
"""Each fault with the check that finds it."""
