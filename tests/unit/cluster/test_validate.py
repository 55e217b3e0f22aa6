"""Every check of the manifests finds the fault that it is for, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.validate.checks import CHECKS
from cluster.validate.checks.images import redis_is_too_old
from cluster.validate.documents import Document, Documents, quantity, selects
from cluster.validate.finding import NodeShape, Setting
from cluster.validate.findings import findings
from cluster.validate.repository import compose_faults, lock_faults
from tests.unit.cluster.faults import (
    FAULTS,
    Fault,
    change_serve_config,
    cluster_of,
    find,
    head_of,
    with_fault,
    worker_of,
)

SOUND = Path(__file__).parent / "sound_manifests.yaml"
ROOT = Path(__file__).parents[3]
GIB = 2**30
CPU_NODE = NodeShape("a CPU node", cpu=7.4, memory=26 * GIB)
GPU_NODE = NodeShape("a GPU node", cpu=7.4, memory=26 * GIB, gpus=1, taints=("nvidia.com/gpu:NoSchedule",))
SETTING = Setting(nodes=(CPU_NODE, GPU_NODE), external=frozenset())


@pytest.fixture
def sound() -> list[Document]:
    items: list[Document] = yaml.safe_load(SOUND.read_text(encoding="utf-8"))["items"]
    return items


def names(documents: list[Document], setting: Setting = SETTING) -> set[str]:
    return set(findings(Documents(documents), setting))


def test_sound_manifests_have_no_findings(sound: list[Document]) -> None:
    assert findings(Documents(sound), SETTING) == {}


@pytest.mark.parametrize(("fault", "check"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_fault_is_found_by_its_check_alone(sound: list[Document], fault: Fault, check: str) -> None:
    # A model in a bucket needs no job, and a claim for one node is wrong for each of its users.
    assert names(with_fault(sound, fault)) == {check}


@pytest.mark.parametrize("field", ["apiVersion", "kind", "metadata"])
def test_a_document_without_a_name_is_a_finding(sound: list[Document], field: str) -> None:
    del sound[0][field]
    assert names(sound) == {"schemas"}


def test_null_is_an_absent_field(sound: list[Document]) -> None:
    find(sound, "ConfigMap")["metadata"]["labels"] = None
    worker_of(sound)["nodeSelector"] = None
    assert names(sound) == set()
    worker_of(sound)["securityContext"] = None
    assert names(sound) == {"pod-security"}


def test_a_malformed_field_is_a_finding(sound: list[Document]) -> None:
    worker_of(sound)["containers"][0]["resources"]["limits"]["memory"] = "a lot"
    found = findings(Documents(sound), SETTING)["valid-pods"]
    assert (
        str(found[-1]) == "the documents: a field is malformed: ValueError: could not convert string to float: 'a lot'"
    )


def test_every_check_has_a_fault() -> None:
    assert {check for _, check in FAULTS} == {*CHECKS, "schemas"}


def test_a_budget_of_a_statefulset_may_use_max_unavailable(sound: list[Document]) -> None:
    budget = find(sound, "PodDisruptionBudget")
    budget["spec"] = {"maxUnavailable": 1, "selector": {"matchLabels": {"component": "store"}}}
    assert names(sound) == set()


def test_two_budgets_of_one_pod_block_its_eviction(sound: list[Document]) -> None:
    other = yaml.safe_load(yaml.safe_dump(find(sound, "PodDisruptionBudget")))
    other["metadata"]["name"] = "other"
    assert names([*sound, other]) == {"disruption-budgets"}


def test_one_gpu_node_holds_the_head_only_with_room_and_tolerations(sound: list[Document]) -> None:
    cluster_of(sound)["workerGroupSpecs"][0]["minReplicas"] = 1
    find(sound, "PodDisruptionBudget")["spec"]["minAvailable"] = 0
    one_node = Setting(nodes=(NodeShape("a GPU node", 7.4, 26 * GIB, 1, GPU_NODE.taints, count=1),))
    assert names(sound, one_node) == {"fits-nodes"}

    smaller = {"requests": {"cpu": "500m", "memory": "1Gi"}}
    for spec in (head_of(sound), find(sound, "StatefulSet")["spec"]["template"]["spec"], pull_of(sound)):
        spec.setdefault("tolerations", []).append({"key": "nvidia.com/gpu", "operator": "Exists"})
        spec["containers"][0]["resources"] = smaller
    worker_of(sound)["containers"][0]["resources"] = {
        "requests": {"cpu": "4", "memory": "18Gi", "nvidia.com/gpu": "1"},
        "limits": {"nvidia.com/gpu": "1"},
    }
    assert names(sound, one_node) == set()

    pull_of(sound)["tolerations"] = []
    assert [str(each) for each in findings(Documents(sound), one_node)["fits-nodes"]] == [
        "Job/pull: 0.5 CPUs, 1Gi fit on no free node of 1 of a GPU node "
        "(7.4 CPUs, 26Gi, 1 GPUs, taints nvidia.com/gpu:NoSchedule)"
    ]


def pull_of(documents: list[Document]) -> Document:
    found: Document = find(documents, "Job")["spec"]["template"]["spec"]
    return found


def test_a_volume_of_one_node_needs_one_pod_and_no_second_cluster(sound: list[Document]) -> None:
    pull = find(sound, "Job")
    sound.remove(pull)
    worker_of(sound)["initContainers"] = pull["spec"]["template"]["spec"]["containers"]
    find(sound, "PersistentVolumeClaim")["spec"]["accessModes"] = ["ReadWriteOnce"]
    group = cluster_of(sound)["workerGroupSpecs"][0]
    group["minReplicas"] = group["maxReplicas"] = 1
    find(sound, "PodDisruptionBudget")["spec"]["minAvailable"] = 0
    assert names(sound) == {"claims"}  # an upgrade starts a second worker

    find(sound, "RayService")["spec"]["upgradeStrategy"] = {"type": "None"}
    assert names(sound) == set()


def test_a_bucket_needs_exactly_the_metadata_server(sound: list[Document]) -> None:
    service = find(sound, "RayService")["spec"]
    bucket = f'gs://bucket/llama, revision: "{"0" * 64}"'
    service["serveConfigV2"] = service["serveConfigV2"].replace("/models/llama", bucket)
    policy = find(sound, "NetworkPolicy")["spec"]
    policy["egress"].append({"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}], "ports": [{"port": 80}]})
    assert names(sound) == set()

    policy["egress"][-1]["to"][0]["ipBlock"]["cidr"] = "169.254.0.0/16"
    assert names(sound) == {"metadata-server"}


@pytest.mark.parametrize(
    ("image", "is_too_old"),
    [
        ("redis:7.4.2", True),
        ("redis:7.4.6", False),
        ("redis:8.0.3-alpine", True),
        ("redis:8.2.2@sha256:0", False),
        ("redis:8.4.0", False),
        ("redis:7", True),
        ("registry.example.com/library/redis:6.2.19", True),
        ("registry.example.com/rerank-service:0.1.0", False),
    ],
)
def test_redis_is_judged_by_its_patch_release(image: str, is_too_old: bool) -> None:
    assert redis_is_too_old(image) is is_too_old


@pytest.mark.parametrize(
    ("text", "number"), [("500m", 0.5), ("2", 2), (3, 3), ("1Ki", 1024), ("1.5Gi", 1.5 * GIB), ("1M", 1e6)]
)
def test_quantities(text: str | int, number: float) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize(
    ("operator", "values", "matches"),
    [
        ("In", ["a"], True),
        ("In", ["b"], False),
        ("NotIn", ["a"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ],
)
def test_selectors_with_expressions(operator: str, values: list[str], matches: bool) -> None:
    selector = {"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}
    assert selects(selector, {"k": "a"}) is matches


def validate(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.validate", *arguments]
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, check=False)


def test_the_command_checks_rendered_manifests(sound: list[Document], tmp_path: Path) -> None:
    file = tmp_path / "rendered.yaml"
    file.write_text(SOUND.read_text(encoding="utf-8"))
    result = validate(str(file))
    assert (result.returncode, result.stdout) == (0, "your manifests: 9 documents, no findings\n")

    find(sound, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]["image"] = "redis:7.4.2"
    result = validate("-", text=yaml.safe_dump_all(sound))
    assert result.returncode == 1
    assert result.stdout == (
        "your manifests: 9 documents, 2 findings\n"
        "  redis-is-fixed: StatefulSet/store: redis:7.4.2 has known holes: use the newest patch release\n"
        "  images-are-pinned: StatefulSet/store: the image redis:7.4.2 of redis has no digest\n"
    )


def test_the_command_knows_the_gates_of_the_operator(sound: list[Document]) -> None:
    cluster_of(sound)["tlsOptions"] = {"enabled": True}
    text = yaml.safe_dump_all(sound)
    assert "needs the operator's feature gate RayClusterMTLS" in validate("-", text=text).stdout
    result = validate("-", "--feature-gate", "RayClusterMTLS", text=text)
    assert (result.returncode, result.stdout) == (0, "your manifests: 9 documents, no findings\n")


@pytest.mark.parametrize("tag", ["", ":1.2", ":prod-cuda"])
def test_an_image_may_have_any_tag_that_names_no_other_variant(sound: list[Document], tag: str) -> None:
    for spec in (head_of(sound), worker_of(sound)):
        for container in spec["containers"]:
            container["image"] = f"registry.example.com/rerank{tag}@sha256:{'0' * 64}"
    assert names(sound) == set()


def test_somebody_else_may_have_filled_a_volume(sound: list[Document]) -> None:
    sound.remove(find(sound, "Job"))
    assert names(sound) == {"models-are-pulled"}
    sound.remove(find(sound, "PersistentVolumeClaim"))
    assert names(sound, Setting()) == set()


@pytest.mark.parametrize(
    ("gpus", "per_replica", "most", "fits"),
    [("1", 0.5, 4, True), ("1", 0.5, 5, False), ("1", 0.6, 2, True), ("1", 0.6, 3, False), ("4", 3, 2, True)],
)
def test_replicas_share_a_gpu_only_whole(
    sound: list[Document], gpus: str, per_replica: float, most: int, fits: bool
) -> None:
    group = cluster_of(sound)["workerGroupSpecs"][0]
    group["resources"] = {"CPU": "16", "GPU": gpus}
    group["maxReplicas"] = 2

    def use_gpus(config: Document) -> None:
        model = config["applications"][-1]["args"]["models"][0]
        model |= {"replica": {"num_gpus": per_replica}, "autoscaling": {"max_replicas": most}}
        model["engine"] = {"device": "cuda"}

    change_serve_config(sound, use_gpus)
    assert names(sound) == (set() if fits else {"replicas-fit"})


@pytest.mark.parametrize(
    ("service", "messages"),
    [
        ({"image": "redis:8.2.2@sha256:0", "command": ["redis-server", "--requirepass", "${PASSWORD:?}"]}, []),
        ({"image": "redis:8.2.2@sha256:0", "command": ["redis-server"]}, ["it runs without a password"]),
        (
            {"image": "redis:7.4.2", "command": "redis-server --requirepass x"},
            ["redis:7.4.2 has known holes: use the newest patch release", "the image redis:7.4.2 has no digest"],
        ),
        ({"image": "rerank-service:0.1.0-cpu"}, []),
    ],
)
def test_redis_in_a_compose_file(service: Document, messages: list[str]) -> None:
    found = compose_faults({"services": {"redis": service}})
    assert [finding.message for finding in found] == messages


CUDA_PACKAGES = ("nvidia-cublas", "nvidia-cudnn", "triton")
HASH = "--hash=sha256:" + "0" * 64
CUDA = "".join(f"{name}==1 {HASH}\n" for name in ("nvidia-cublas", "nvidia-cudnn-cu13", "triton", "torch"))


@pytest.mark.parametrize(
    ("text", "is_cuda", "messages"),
    [
        (f"# a comment\nray[serve]==2.60.0 \\\n    {HASH} \\\n    {HASH}\n    # via rerank-service\n", False, []),
        ("numpy==2.4.0\n", False, ["it has no hash of numpy"]),
        (f"numpy>=2 {HASH}\n", False, [f"it does not pin numpy>=2 {HASH} to one version"]),
        (f"--index-url https://example.com\nnumpy==2 ; python_version < '4' {HASH}\n", False, []),
        (CUDA, True, []),
        (f"torch==2.13.0 {HASH}\n", True, [f"it is for CUDA, but pins no {name}" for name in CUDA_PACKAGES]),
    ],
)
def test_locks_pin_every_package_by_hash(text: str, is_cuda: bool, messages: list[str]) -> None:
    assert [finding.message for finding in lock_faults("lock", text, is_cuda)] == messages
