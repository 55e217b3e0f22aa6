"""The Helm chart renders valid manifests, with the Serve configuration that `rerank-service config` writes."""

import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster import chart, regenerate
from cluster.validate.documents import Document, Documents
from cluster.validate.schemas import problems
from cluster.validate.sets import manifest_sets
from rerank_service.config import parse_serve_config
from tests.unit.cluster.test_generated import write

VALUES = sorted(path.stem for path in chart.VALUES.glob("*.yaml"))
CONFIG = "rerank-service config"
PINNED = "--ingress-cpus 1 --pin --host 0.0.0.0 --key-hashes /etc/rerank-service/key-hashes"
BOTH = "llama-3.2-nv-rerankqa-1b-v2 nv-rerankqa-mistral-4b-v3"

pytestmark = pytest.mark.skipif(
    not chart.is_available(), reason="helm-python-sdk is not installed (extra dev; it has no build for this platform)"
)


def values(name: str, **changes: Any) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((chart.VALUES / f"{name}.yaml").read_text())
    return read | changes


def rendered(given: Mapping[str, Any], name: str = chart.RELEASE) -> Documents:
    return Documents(yaml.safe_load_all(chart.render(given, name)))


def the(documents: Documents, kind: str) -> Document:
    (only,) = documents.of_kind(kind)
    return only


def serve_config(documents: Documents) -> str:
    text: str = the(documents, "RayService")["spec"]["serveConfigV2"]
    return text


def budgets(documents: Documents) -> dict[str, int]:
    return {
        budget["spec"]["selector"]["matchLabels"]["rerank-service/group"]: budget["spec"]["minAvailable"]
        for budget in documents.of_kind("PodDisruptionBudget")
    }


def test_there_are_ten_sets_of_values_or_more() -> None:
    assert len(VALUES) >= 10


def test_make_validate_checks_all_of_them() -> None:
    assert set(VALUES) <= {each.name for each in manifest_sets()}


@pytest.mark.parametrize("name", VALUES)
def test_helm_finds_nothing(name: str) -> None:
    assert chart.lint(values(name)) == []


@pytest.mark.parametrize("name", VALUES)
def test_the_service_and_serve_accept_the_configuration(name: str) -> None:
    text = serve_config(rendered(values(name)))
    ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert parse_serve_config(text, name).models


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("base", f"{CONFIG} {BOTH} --replicas 1:4 --ingresses 2:4 {PINNED}"),
        (
            "many-nodes",
            f"{CONFIG} {BOTH} --replicas llama-1b=2:16 --replicas mistral-4b=2:8 --ingresses 4:16 {PINNED}",
        ),
        ("one-gpu", f"{CONFIG} llama-3.2-nv-rerankqa-1b-v2 {PINNED}"),
        (
            "dev-cpu",
            f"{CONFIG} all-MiniLM-L6-v2 --device cpu --replicas 1:2 --ingress-cpus 0.5 --host 0.0.0.0"
            " --key-hashes /etc/rerank-service/key-hashes",
        ),
    ],
)
def test_the_configuration_is_that_of_the_command(name: str, command: str) -> None:
    written = yaml.safe_load(write(shlex.split(command)))
    ours = yaml.safe_load(serve_config(rendered(values(name))))
    assert ours == written


@pytest.mark.parametrize("name", regenerate.MANIFESTS)
def test_the_kept_manifests_are_the_charts(name: str) -> None:
    kept = regenerate.FOLDER / "kuberay" / regenerate.MANIFESTS[name] / "manifests.yaml"
    assert kept.read_text() == regenerate.manifests(name), "run: python -m cluster.regenerate"


def test_a_budget_leaves_one_worker_to_evict_or_is_left_out() -> None:
    models = values("base")["models"]
    models[0]["replicas"] = {"min": 5, "max": 8}
    assert budgets(rendered(values("base", models=models))) == {"llama-1b": 4}
    models[0]["gpu"]["count"], models[0]["worker"]["cpu"] = 4, 18
    assert budgets(rendered(values("base", models=models))) == {"llama-1b": 1}  # two workers with four GPUs each


def test_the_time_to_drain_follows_the_longest_request() -> None:
    documents = rendered(values("one-gpu", config={"limits": {"request_timeout_s": 300}}))
    limits = parse_serve_config(serve_config(documents), "rendered").limits
    (group,) = the(documents, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]

    deadline_s = float(command.rpartition(" ")[2])
    assert deadline_s >= 2 * limits.ingress_grace_s
    assert pod["terminationGracePeriodSeconds"] >= deadline_s + 60
    assert yaml.safe_load(serve_config(documents))["http_options"]["request_timeout_s"] > limits.request_timeout_s


def test_a_models_own_settings_come_last() -> None:
    models = values("one-gpu")["models"]
    models[0] |= {"dtype": "float8", "config": {"window_tokens": 4096, "engine": {"compile": False}}}
    (model,) = parse_serve_config(serve_config(rendered(values("one-gpu", models=models))), "rendered").models
    assert model.window_tokens == 4096
    assert (model.engine.dtype, model.engine.compile) == ("float8", False)
    assert model.batching.max_batch_tokens == 32768  # the catalogue's


def test_a_model_outside_the_catalogue() -> None:
    own = {"id": "acme/reranker", "checkpoint": {"source": "/models/acme"}}
    model = {"name": "acme", "application": "acme", "config": own, "pull": "acme/reranker@0123"}
    model |= {"replicas": {"min": 1, "max": 1}, "gpu": {"count": 1}, "worker": {"cpu": 5, "memory": "16Gi"}}
    documents = rendered(values("base", models=[model]))
    (served,) = parse_serve_config(serve_config(documents), "rendered").models
    assert (served.id, served.engine.device) == ("acme/reranker", "cuda")
    (pull,) = the(documents, "Job")["spec"]["template"]["spec"]["containers"]
    assert pull["command"] == ["rerank-service", "pull", "acme/reranker@0123", "--to", "/models/acme"]

    model.pop("application")
    with pytest.raises(Exception, match="acme is not a name of `rerank-service models`"):
        rendered(values("base", models=[model]))


def test_a_changed_job_has_another_name() -> None:
    before = {job["metadata"]["name"] for job in rendered(values("base")).of_kind("Job")}
    image = values("base")["image"] | {"digest": f"sha256:{'1' * 64}"}
    after = {job["metadata"]["name"] for job in rendered(values("base", image=image)).of_kind("Job")}
    assert not before & after


def on_gpus(**changes: Any) -> dict[str, Any]:
    """The first model of `base`, with other settings."""
    model: dict[str, Any] = values("base")["models"][0]
    return model | changes


@pytest.mark.parametrize(
    ("replicas", "gpu", "workers"),
    [
        ((4, 4), {"count": 4, "perReplica": 3}, (4, 4)),  # one GPU of each worker stays free
        ((4, 5), {"count": 1, "perReplica": 0.6}, (4, 5)),
        ((3, 7), {"count": 1, "perReplica": 0.3}, (1, 3)),
        ((3, 8), {"count": 2, "perReplica": 1}, (2, 4)),
    ],
)
def test_workers_have_room_for_the_replicas(replicas: tuple[int, int], gpu: Document, workers: tuple[int, int]) -> None:
    bounds = dict(zip(("min", "max"), replicas, strict=True))
    model = on_gpus(replicas=bounds, gpu=gpu, worker={"cpu": 16, "memory": "64Gi"})
    (group,) = the(rendered(values("base", models=[model])), "RayService")["spec"]["rayClusterConfig"][
        "workerGroupSpecs"
    ]
    assert (group["minReplicas"], group["maxReplicas"]) == workers


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"replicas": {"min": 3, "max": 2}}, "min 3 is above max 2"),
        ({"gpu": {"count": 1, "perReplica": 2}}, "needs 2 GPUs, and a worker has 1"),
        ({"gpu": {"count": 4, "perReplica": 1.5}}, "whole number"),
        ({"gpu": {"count": 4}}, "GPUs for 4 replicas, which need 16 CPUs, and worker.cpu is 6"),
        ({"config": {"replica": {"num_cpus": 7}}}, "worker.cpu is 6"),
        ({"application": "rerank"}, "reserved"),
        ({"application": "cpu"}, "reserved"),
        ({"name": "acme/Reranker.V2", "application": "acme"}, "config.checkpoint.source"),
    ],
)
def test_values_that_contradict_each_other_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(Exception, match=complaint):
        chart.render(values("base", models=[on_gpus(**changes)]))


def test_the_same_model_twice_needs_two_applications() -> None:
    with pytest.raises(Exception, match="another model's"):
        chart.render(values("base", models=[on_gpus(), on_gpus()]))


def test_a_model_on_cpus_fits_a_worker() -> None:
    models = [{**values("dev-cpu")["models"][0], "cpus": 3}]
    with pytest.raises(Exception, match=r"needs 3 CPUs, and cpuWorkers\.cpu is 2"):
        chart.render(values("dev-cpu", models=models))


@pytest.mark.parametrize("name", ["r" * 47, "re.rank", "1rerank", "rerank-"])
def test_a_release_name_that_kuberay_or_redis_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(Exception, match="at most 46 characters"):
        chart.render(values("base"), name)


def test_long_names_stay_within_the_limits_of_labels() -> None:
    model = on_gpus(application="a" * 30)
    documents = rendered(values("base", models=[model]), "r" * 46)
    longest = {"Job": 63, "StatefulSet": 52, "Service": 63}
    for kind, limit in longest.items():
        assert all(len(each["metadata"]["name"]) <= limit for each in documents.of_kind(kind)), kind


def test_names_that_yaml_would_read_as_other_types_stay_text() -> None:
    model = on_gpus(application="on", gpu={"count": 1, "type": "4090"})
    changes = {"auth": {"keysSecret": "123"}, "networkPolicy": {"clientNamespaces": ["1e3"]}}
    changes |= {"gcs": {"redis": {"passwordSecret": "0x1"}}, "ingress": {"enabled": True, "tlsSecret": "7"}}
    changes["ingress"] |= {"host": "*.example.com", "className": "1"}
    documents = rendered(values("base", models=[model], **changes), "true")
    assert not [problem for document in documents.all for problem in problems(document)]


def routes_of(documents: Documents) -> list[Document]:
    """The backends of the Ingress and of the HTTPRoute."""
    (path,) = the(documents, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    service = path["backend"]["service"]
    (backend,) = the(documents, "HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    return [{"name": service["name"], "port": service["port"]["number"]}, backend]


def test_during_an_incremental_upgrade_requests_go_through_the_gateway_that_divides_them() -> None:
    door = {"enabled": True, "host": "x.example.com", "tlsSecret": "tls", "className": "istio"}
    given = values("gateway", ingress=door, gateway=door)
    assert routes_of(rendered(given)) == [{"name": "rerank-gateway-istio", "port": 80}] * 2

    given["upgrade"]["gatewayService"] = "other"
    assert routes_of(rendered(given)) == [{"name": "other", "port": 80}] * 2

    given["upgrade"] = {"type": "NewCluster"}
    assert routes_of(rendered(given)) == [{"name": "rerank-serve-svc", "port": 8000}] * 2


@pytest.mark.parametrize(
    ("changes", "gateway"),
    [
        ({}, "rerank-gateway"),
        ({"upgrade": {"type": "NewCluster"}}, "rerank"),
        ({"upgrade": {"type": "NewCluster"}, "gateway": {"enabled": False}}, None),
    ],
)
def test_the_gateway_in_front_may_call_the_workers(changes: dict[str, Any], gateway: str | None) -> None:
    given = values("gateway", **changes) | {"networkPolicy": {"clientBlocks": ["130.211.0.0/22"]}}
    policy = next(each for each in rendered(given).of_kind("NetworkPolicy") if "ingress" in each["spec"])
    clients = next(rule["from"] for rule in policy["spec"]["ingress"] if rule.get("ports") == [{"port": 8000}])
    labels = [peer["podSelector"]["matchLabels"] for peer in clients if "podSelector" in peer]
    assert labels == ([{"gateway.networking.k8s.io/gateway-name": gateway}] if gateway else [])
    assert {"ipBlock": {"cidr": "130.211.0.0/22"}} in clients


def test_the_port_of_an_external_redis_is_open() -> None:
    documents = rendered(values("base", gcs={"redis": {"address": "rediss://redis.example.com:6390"}}))
    rules = [rule for each in documents.of_kind("NetworkPolicy") for rule in each["spec"].get("egress", [])]
    assert any({"port": 6390} in rule.get("ports", []) for rule in rules)


@pytest.mark.parametrize(
    ("changes", "volume", "components"),
    [
        ({"pull": "s3://bucket/model"}, {}, ["pull"]),
        ({"pull": "gs://bucket/model"}, {"accessMode": "ReadWriteOnce", "pull": "init"}, ["ray"]),
        ({"config": {"checkpoint": {"source": "gs://bucket/model"}}}, {}, ["ray", "pull"]),
    ],
)
def test_only_pods_that_read_from_a_bucket_reach_the_metadata_server(
    changes: dict[str, Any], volume: dict[str, Any], components: list[str]
) -> None:
    documents = rendered(values("base", models=[on_gpus(**changes)], volume=volume))
    policy = documents.named("NetworkPolicy", "rerank-metadata-server")
    assert policy is not None
    (expression,) = policy["spec"]["podSelector"]["matchExpressions"]
    assert expression["values"] == components


def test_slower_cadences_of_the_controller_reach_all_nodes_with_a_new_cluster() -> None:
    name, plain = "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS", rendered(values("base"))
    slower = rendered(values("base", rayEnvironment={name: "20000"}))
    before, after = (the(each, "ConfigMap")["data"] for each in (plain, slower))
    assert after == before | {name: "20000"}
    templates = [[pod["template"]["metadata"] for pod in ray_groups(each)] for each in (plain, slower)]
    assert all(old != new for old, new in zip(*templates, strict=True))


def ray_groups(documents: Documents) -> list[Document]:
    cluster = the(documents, "RayService")["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_two_releases_in_a_namespace_select_only_their_own_pods() -> None:
    first, second = (
        rendered(values("many-nodes") | {"serviceAccount": {"create": True, "name": name}}, name)
        for name in ("east", "west")
    )
    names = [{(document["kind"], document["metadata"]["name"]) for document in set_.all} for set_ in (first, second)]
    assert not names[0] & names[1]
    for policy in first.of_kind("NetworkPolicy", "PodDisruptionBudget"):
        selector = policy["spec"].get("podSelector") or policy["spec"]["selector"]
        assert not any(selector["matchLabels"].items() <= pod.labels.items() for pod in second.pods)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image": {"repository": "x", "tag": "latest"}}, "digest"),
        ({"image": {"repository": "x", "digest": "latest"}}, "digest"),
        ({"models": []}, "models"),
        ({"modles": []}, "modles"),
        ({"volume": {"accessMode": "ReadWriteOnce", "pull": "job"}}, "pull"),
        ({"ingress": {"enabled": True, "host": "x.example.com"}}, "tlsSecret"),
        ({"gateway": {"enabled": True, "host": "x.example.com"}}, "gateway"),
        ({"upgrade": {"type": "NewClusterWithIncrementalUpgrade"}}, "gatewayClassName"),
        ({"gcs": {"redis": {"image": "redis:7"}}}, "image"),
        ({"volume": {"accessMode": "ReadOnlyMany"}}, "pull"),
        ({"head": {"memory": "..."}}, "memory"),
        ({"config": {"limits": None}}, "limits"),
        ({"ingress": {"enabled": True, "host": "https://x.example.com", "tlsSecret": "t"}}, "host"),
    ],
)
def test_a_mistake_in_the_values_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(Exception, match=complaint):
        chart.render(values("base", **change))


def test_a_model_on_gpus_says_how_many_a_worker_has() -> None:
    models = values("base")["models"]
    models[0]["gpu"] = {}  # Helm's templates would read an empty mapping as none, and place the model on CPUs
    with pytest.raises(Exception, match="count"):
        chart.render(values("base", models=models))


def test_every_value_is_in_the_schema_with_its_default() -> None:
    defaults = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    schema = yaml.safe_load((chart.CHART / "values.schema.json").read_text())["properties"]
    assert set(defaults) == set(schema) - {"global"}
    for name, value in defaults.items():
        if isinstance(value, dict) and schema[name].get("additionalProperties") is False:
            assert set(value) == set(schema[name]["properties"]), name


@pytest.mark.parametrize(
    ("gpu", "raylet", "is_alive"),
    [
        ("echo GPU-5f3c", "success", True),
        ("echo Unable to determine the device handle: Unknown Error; exit 15", "success", False),
        ("exit 9", "success", False),
        ("echo GPU-5f3c", "failure", False),
    ],
)
def test_the_health_probe_asks_the_gpu_and_the_raylet(gpu: str, raylet: str, is_alive: bool, tmp_path: Path) -> None:
    cluster = the(rendered(values("cell"), "rerank-a"), "RayService")["spec"]["rayClusterConfig"]
    container = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    for name, script in (("nvidia-smi", gpu), ("wget", f"echo {raylet}")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    command = container["livenessProbe"]["exec"]["command"]
    result = subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False, timeout=60)

    assert (result.returncode == 0) == is_alive
    assert "nvidia-smi" not in container["startupProbe"]["exec"]["command"][-1]
