"""What KubeRay 1.7 refuses after the API server has accepted it (ray-operator/controllers/ray/utils/validation.go)."""

import re
from collections.abc import Iterator

from cluster.validate.documents import Document, Documents, name_of
from cluster.validate.finding import Finding, Setting

__all__ = ["kuberay_accepts"]

_LONGEST_NAME = 47  # KubeRay appends the name of the cluster, and pods' names may have 63 characters
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_OWN_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_RESOURCE_PARAMETERS = {"num-cpus", "num-gpus", "memory", "resources"}
_STORE_VARIABLES = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}
_TLS_VARIABLES = {"RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"}
_FIRST_WITH_TOKENS = (2, 52)
_GATED_FIELDS = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}


def kuberay_accepts(documents: Documents, setting: Setting) -> Iterator[Finding]:
    """The operator would reconcile every RayService."""
    for service in documents.of_kind("RayService"):
        for message in [*_service_faults(service), *_cluster_faults(service["spec"]["rayClusterConfig"], setting)]:
            yield Finding(name_of(service), f"KubeRay refuses it: {message}")


def _service_faults(service: Document) -> Iterator[str]:
    name, spec = service["metadata"]["name"], service["spec"]
    if len(name) > _LONGEST_NAME or not _LABEL.fullmatch(name):
        yield f"the name {name} has more than {_LONGEST_NAME} characters, or others than a-z, 0-9 and -"
    if spec["rayClusterConfig"].get("upgradeStrategy", {}).get("type"):
        yield "rayClusterConfig.upgradeStrategy is only for a RayCluster of its own"
    if spec["rayClusterConfig"]["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "headGroupSpec.headService must have no name"
    upgrade = spec.get("upgradeStrategy", {})
    if upgrade.get("type") == "NewClusterWithIncrementalUpgrade":
        options = upgrade.get("clusterUpgradeOptions", {})
        surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", 0)
        if not 0 < step <= surge <= 100 or options.get("intervalSeconds", 0) <= 0:
            yield "an incremental upgrade needs 0 < stepSizePercent <= maxSurgePercent <= 100, and an interval"
        if not options.get("gatewayClassName"):
            yield "an incremental upgrade needs a gatewayClassName"
        if not spec["rayClusterConfig"].get("enableInTreeAutoscaling"):
            yield "an incremental upgrade needs enableInTreeAutoscaling"


def _cluster_faults(cluster: Document, setting: Setting) -> Iterator[str]:
    for field, gate in _GATED_FIELDS.items():
        if field in cluster and gate not in setting.feature_gates:
            yield f"{field} needs the operator's feature gate {gate}"
    yield from _authentication_faults(cluster)
    yield from _store_faults(cluster, setting)
    groups = cluster.get("workerGroupSpecs", [])
    names = [group["groupName"] for group in groups]
    yield from (
        f"two groups have the name {name}" for name in sorted({each for each in names if names.count(each) > 1})
    )
    yield from _group_faults("the head", cluster["headGroupSpec"], cluster)
    for group in groups:
        name = f"the group {group['groupName']}"
        yield from _group_faults(name, group, cluster)
        if not 0 <= group["minReplicas"] <= group["maxReplicas"]:
            yield f"{name} has minReplicas {group['minReplicas']} and maxReplicas {group['maxReplicas']}"
        if {"idleTimeoutSeconds", "priority"} & group.keys() and not _is_second_autoscaler(cluster):
            yield f"{name} sets a field of autoscaler v2, which is not on"


def _group_faults(name: str, group: Document, cluster: Document) -> Iterator[str]:
    parameters = group.get("rayStartParams", {})
    if group.get("resources") and _RESOURCE_PARAMETERS & parameters.keys():
        yield f"{name} has resources in rayStartParams and in resources"
    if "labels" in parameters:
        yield f"{name} has labels in rayStartParams"
    yield from (
        f"{name} has the label value {value}"
        for value in group.get("labels", {}).values()
        if len(value) > 63 or not _OWN_LABEL_VALUE.fullmatch(value)
    )
    spec = group["template"]["spec"]
    if _is_second_autoscaler(cluster) and spec.get("restartPolicy", "Never") != "Never":
        yield f"{name} has a restartPolicy, which autoscaler v2 does not allow"
    variables = {variable["name"] for variable in spec["containers"][0].get("env", [])}
    if cluster.get("tlsOptions", {}).get("enabled") and variables & _TLS_VARIABLES:
        yield f"{name} sets variables that tlsOptions sets"
    if variables & _STORE_VARIABLES:
        yield f"{name} sets variables of gcsFaultToleranceOptions"


def _authentication_faults(cluster: Document) -> Iterator[str]:
    options = cluster.get("authOptions", {})
    if options.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth is not for a RayService"
    if options.get("mode", "token" if options else "disabled") == "token":
        version = tuple(int(part) for part in cluster.get("rayVersion", "0.0").split(".")[:2])
        if version < _FIRST_WITH_TOKENS:
            yield "authOptions.mode token needs a rayVersion of 2.52 or later"


def _store_faults(cluster: Document, setting: Setting) -> Iterator[str]:
    options = cluster.get("gcsFaultToleranceOptions")
    if options is None:
        return
    redis = {"redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace"} & options.keys()
    if options.get("backend", "redis") == "redis":
        if "storage" in options:
            yield "gcsFaultToleranceOptions.storage is for the backend rocksdb"
        if "redisAddress" not in options:
            yield "gcsFaultToleranceOptions has no redisAddress"
        return
    if "GCSFaultToleranceEmbeddedStorage" not in setting.feature_gates:
        yield "the backend rocksdb needs the operator's feature gate GCSFaultToleranceEmbeddedStorage"
    if redis:
        yield f"the backend rocksdb allows no {', '.join(sorted(redis))}"
    storage = options.get("storage", {})
    if "claimName" in storage and {"size", "storageClassName", "accessModes"} & storage.keys():
        yield "gcsFaultToleranceOptions.storage has a claimName and fields for a new claim"


def _is_second_autoscaler(cluster: Document) -> bool:
    # Since Ray 2.47, version 2 is the default.
    enabled = cluster.get("enableInTreeAutoscaling", False)
    return bool(enabled) and cluster.get("autoscalerOptions", {}).get("version", "v2") == "v2"
