"""The KubeRay manifests built by kustomize are valid and consistent with the code."""

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private import ray_constants
from ray.autoscaler._private.kuberay import autoscaling_config

from rerank_service import __version__
from rerank_service.config import RerankConfig, parse_serve_config
from rerank_service.tools.deployment.ray_environment import HAPROXY_ENVIRONMENT, RAY_ENVIRONMENT
from tests.manifests import built, kustomize, problems

KUBERAY = Path(__file__).parents[3] / "cluster" / "kuberay"
FOLDERS = ["base", "overlays/dev-cpu", "overlays/one-gpu", "overlays/many-nodes", "overlays/cloud-storage"]
IMAGE_BIN = "/opt/rerank-service/bin"  # cluster/Dockerfile
LOGGING = {"RAY_LOG_TO_STDERR": "1", "RAY_SERVE_LOG_TO_STDERR": "1"}

pytestmark = [
    pytest.mark.skipif(kustomize() is None, reason="needs kubectl or kustomize"),
    pytest.mark.parametrize("folder", FOLDERS),
]


def resources(folder: str, kind: str) -> list[dict[str, Any]]:
    return [resource for resource in built(KUBERAY / folder) if resource["kind"] == kind]


def cluster(folder: str) -> dict[str, Any]:
    (service,) = resources(folder, "RayService")
    config: dict[str, Any] = service["spec"]["rayClusterConfig"]
    return config


def settings(folder: str) -> RerankConfig:
    (service,) = resources(folder, "RayService")
    return parse_serve_config(service["spec"]["serveConfigV2"], folder)


def groups(folder: str) -> list[dict[str, Any]]:
    config = cluster(folder)
    return [config["headGroupSpec"], *config["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return dict(only)


def test_every_resource_is_valid(folder: str) -> None:
    found = {
        f"{resource['kind']}/{resource['metadata']['name']}": problems(resource) for resource in built(KUBERAY / folder)
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_mistakes_are_detected(folder: str) -> None:
    (service,) = copy.deepcopy(resources(folder, "RayService"))
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    worker["maxReplica"] = worker.pop("maxReplicas")
    worker["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    service["spec"]["rayClusterConfig"]["autoscalerOptions"] = {"version": "v3"}

    text = "\n".join(problems(service))

    assert all(mistake in text for mistake in ("maxReplica'", "'maxReplicas' is a required", "livenesProbe", "'v3'"))


def test_rays_autoscaler_reads_the_cluster(folder: str) -> None:
    resource = {"metadata": {"name": "rerank", "namespace": "rerank"}, "spec": cluster(folder)}

    derived = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)

    assert derived["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
    for group in cluster(folder)["workerGroupSpecs"]:
        assert derived["available_node_types"][group["groupName"]]["resources"]["CPU"] == int(group["resources"]["CPU"])


def test_each_model_fits_on_exactly_one_group(folder: str) -> None:
    workers = cluster(folder)["workerGroupSpecs"]
    for model in settings(folder).models:
        wanted = {"CPU": model.replica.num_cpus, "GPU": model.replica.num_gpus} | dict(model.replica.resources)
        fitting = [
            group
            for group in workers
            if all(float(group["resources"].get(name, 0)) >= amount for name, amount in wanted.items())
        ]
        assert len(fitting) == 1
        assert fitting[0]["minReplicas"] >= 1
        assert fitting[0]["maxReplicas"] >= (model.autoscaling.max_replicas if model.replica.num_gpus else 1)


def test_pods_request_the_resources_that_ray_counts(folder: str) -> None:
    for group in cluster(folder)["workerGroupSpecs"]:
        requests = container(group)["resources"]["requests"]
        assert requests["cpu"] == group["resources"]["CPU"]
        assert requests.get("nvidia.com/gpu") == group["resources"].get("GPU")


def test_every_pod_has_the_environment_that_rays_processes_need(folder: str) -> None:
    (environment,) = resources(folder, "ConfigMap")
    wanted = RAY_ENVIRONMENT | HAPROXY_ENVIRONMENT | {"RAY_SERVE_HAPROXY_BINARY_PATH": f"{IMAGE_BIN}/rerank-haproxy"}

    assert environment["data"] == wanted | LOGGING
    for group in groups(folder):
        assert container(group)["envFrom"] == [{"configMapRef": {"name": environment["metadata"]["name"]}}]


def test_pods_have_time_to_drain(folder: str) -> None:
    limits = settings(folder).limits
    chosen = [model.replica.graceful_shutdown_timeout_s for model in settings(folder).models]
    longest_s = max(limits.ingress_grace_s, *(grace_s or limits.replica_grace_s for grace_s in chosen))
    for group in cluster(folder)["workerGroupSpecs"]:
        command = container(group)["lifecycle"]["preStop"]["exec"]["command"][-1]
        deadline_s = float(command.partition("--deadline-s ")[2].split()[0])
        # Serve stops a replica this long before the deadline, even if the replica has no replacement.
        assert deadline_s >= 2 * longest_s
        grace_s = group["template"]["spec"]["terminationGracePeriodSeconds"]
        assert deadline_s + ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S < grace_s


def test_pods_run_without_privileges(folder: str) -> None:
    for group in groups(folder):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container(group)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_versions_equal_those_of_this_code(folder: str) -> None:
    assert cluster(folder)["rayVersion"] == version("ray")
    for group in groups(folder):
        assert container(group)["image"].split(":")[1].startswith(f"{__version__}-")


def test_selectors_match_existing_pods(folder: str) -> None:
    templates = [group["template"]["metadata"]["labels"] for group in groups(folder)]
    templates += [stateful["spec"]["template"]["metadata"]["labels"] for stateful in resources(folder, "StatefulSet")]
    policies = [policy["spec"]["podSelector"]["matchLabels"] for policy in resources(folder, "NetworkPolicy")]
    budgets = [budget["spec"]["selector"]["matchLabels"] for budget in resources(folder, "PodDisruptionBudget")]

    for selector in [*policies, *budgets]:
        assert any(selector.items() <= labels.items() for labels in templates), selector


def test_api_keys_are_required_and_mounted(folder: str) -> None:
    path = settings(folder).auth.key_hashes_file
    assert path is not None
    for group in groups(folder):
        (mount,) = [mount for mount in container(group)["volumeMounts"] if mount["name"] == "keys"]
        assert Path(mount["mountPath"]) == path.parent


def test_no_file_contains_a_secret(folder: str) -> None:
    assert not resources(folder, "Secret")
    assert "kind: Secret" not in yaml.safe_dump_all(built(KUBERAY / folder))


def test_every_folder_that_a_pod_writes_to_is_a_volume(folder: str) -> None:
    for group in groups(folder):
        pod = group["template"]["spec"]
        empty = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
        writable = {mount["mountPath"] for mount in container(group)["volumeMounts"] if mount["name"] in empty}
        variables = {variable["name"]: variable.get("value") for variable in container(group)["env"]}
        assert writable >= {"/tmp", "/dev/shm", "/cache"}  # noqa: S108
        assert variables["HOME"] in writable
