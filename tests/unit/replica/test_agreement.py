"""Replicas of a deployment agree on a precision, over a store in memory in place of Ray's."""

from collections.abc import Callable

import pytest
from ray.experimental import internal_kv

from rerank_service.config import ModelConfig
from rerank_service.engine.protocol import Agree, choose_here
from rerank_service.errors import CheckpointError
from rerank_service.messages import Numerics
from rerank_service.replica import agreement
from rerank_service.replica.agreement import agree_in_deployment, agree_in_job

FLOAT32, BFLOAT16, INT8 = "float32 on cpu", "bfloat16 on cpu", "int8 with float32 states on cpu"
WEAK, STRONG = (FLOAT32,), (FLOAT32, BFLOAT16)
MODEL = ModelConfig.model_validate({"id": "org/m", "checkpoint": {"source": "/m"}})


class Store:
    """Ray's store of keys and values. `on_put` is called before each put, as if other processes were faster."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.on_put: Callable[[], object] = lambda: None

    def put(self, key: str, value: str | bytes, overwrite: bool = True, *, namespace: bytes) -> bool:
        assert namespace == b"rerank-service"
        on_put, self.on_put = self.on_put, lambda: None
        on_put()
        exists = key.encode() in self.values
        if overwrite or not exists:
            self.values[key.encode()] = value.encode() if isinstance(value, str) else value
        return exists

    def get(self, key: str, *, namespace: bytes) -> bytes | None:
        return self.values.get(key.encode())

    def list_keys(self, prefix: str | bytes, *, namespace: bytes) -> list[bytes]:
        wanted = prefix.encode() if isinstance(prefix, str) else prefix
        return [key for key in self.values if key.startswith(wanted)]

    def delete(self, key: str, *, del_by_prefix: bool = False, namespace: bytes) -> int:
        found = self.list_keys(key, namespace=namespace) if del_by_prefix else [key.encode()]
        for one in found:
            self.values.pop(one, None)
        return len(found)


class Cluster:
    """The living actors of a cluster, and its store."""

    def __init__(self) -> None:
        self.store = Store()
        self.living: set[str] = set()

    def replica(self, name: str, scope: str = "app/m") -> Agree:
        """Starts a replica."""
        self.living.add(name)
        group = agreement._Group("model m", scope, name, lambda: self.living)
        return lambda possible, choose: agreement._agree(group, possible, choose)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    for name in ("put", "get", "list", "del"):
        method = {"list": "list_keys", "del": "delete"}.get(name, name)
        monkeypatch.setattr(internal_kv, f"_internal_kv_{name}", getattr(cluster.store, method))
    return cluster


def choosing(name: str) -> Callable[[], Numerics]:
    return lambda: Numerics(name, f"measured {name}")


def never() -> Numerics:
    raise AssertionError("a choice exists")


@pytest.mark.parametrize(("first", "later"), [(WEAK, STRONG), (STRONG, STRONG)])
def test_later_replicas_follow_the_first_and_measure_nothing(
    cluster: Cluster, first: tuple[str, ...], later: tuple[str, ...]
) -> None:
    chosen = cluster.replica("a")(first, choosing(first[-1]))

    assert cluster.replica("b")(later, never) == chosen == Numerics(first[-1], f"measured {first[-1]}")


def test_a_replica_that_cannot_follow_refuses_and_says_what_to_do(cluster: Cluster) -> None:
    cluster.replica("a")(STRONG, choosing(BFLOAT16))

    with pytest.raises(CheckpointError) as refused:
        cluster.replica("b")((FLOAT32, INT8), never)

    message = str(refused.value)
    assert message.startswith(
        "model m: this process can compute in float32 on cpu or int8 with float32 states on cpu, but all of them "
        "compute in bfloat16 on cpu, as chosen on "
    )
    assert "(measured bfloat16 on cpu)" in message
    assert "set engine.dtype to a type that every node supports, such as float32" in message


def test_the_faster_of_two_first_replicas_chooses(cluster: Cluster) -> None:
    slow, fast = cluster.replica("slow"), cluster.replica("fast")
    cluster.store.on_put = lambda: fast(WEAK, choosing(FLOAT32))

    assert slow(STRONG, choosing(BFLOAT16)).name == FLOAT32


def test_a_choice_binds_while_the_replica_that_made_it_still_starts(cluster: Cluster) -> None:
    slow, fast = cluster.replica("slow"), cluster.replica("fast")

    def choose_and_hang() -> None:  # the choice is stored, but the replica has not joined yet
        group = agreement._Group("model m", "app/m", "fast", lambda: cluster.living)
        agreement._propose(group, 1, Numerics(BFLOAT16, "measured"))

    cluster.store.on_put = choose_and_hang
    with pytest.raises(CheckpointError):
        slow(WEAK, choosing(FLOAT32))
    assert fast(STRONG, never).name == BFLOAT16


def test_a_choice_outlives_its_replicas(cluster: Cluster) -> None:
    cluster.replica("a")(WEAK, choosing(FLOAT32))
    cluster.living.clear()

    assert cluster.replica("b")(STRONG, never).name == FLOAT32


def test_a_choice_that_nobody_alive_follows_is_replaced_if_need_be(cluster: Cluster) -> None:
    cluster.replica("a")(STRONG, choosing(BFLOAT16))
    cluster.replica("b")(STRONG, never)
    cluster.living.remove("a")
    with pytest.raises(CheckpointError):
        cluster.replica("c")(WEAK, choosing(FLOAT32))

    cluster.living.remove("b")

    assert cluster.replica("c")(WEAK, choosing(FLOAT32)).name == FLOAT32
    assert cluster.replica("d")(STRONG, never).name == FLOAT32
    with pytest.raises(CheckpointError):
        cluster.replica("e")((INT8,), never)


def test_of_two_replacements_the_first_binds(cluster: Cluster) -> None:
    cluster.replica("a")(STRONG, choosing(BFLOAT16))
    cluster.living.clear()
    slow, fast = cluster.replica("slow"), cluster.replica("fast")
    cluster.store.on_put = lambda: fast(WEAK, choosing(FLOAT32))

    assert slow((FLOAT32, INT8), choosing(INT8)).name == FLOAT32


def test_the_store_keeps_only_living_replicas_and_the_newest_choice(cluster: Cluster) -> None:
    cluster.replica("a")(STRONG, choosing(BFLOAT16))
    for number in range(20):
        cluster.replica(f"b{number}")(STRONG, never)
        cluster.living.remove(f"b{number}")
    assert len(cluster.store.values) <= 3
    cluster.living.clear()

    cluster.replica("c")(WEAK, choosing(FLOAT32))

    assert sorted(cluster.store.values) == [b"app/m/000002", b"app/m/000002/c"]


def test_deployments_agree_separately(cluster: Cluster) -> None:
    cluster.replica("a")(STRONG, choosing(BFLOAT16))
    assert cluster.replica("b", "app/m/other-settings")(WEAK, choosing(FLOAT32)).name == FLOAT32


def test_outside_serve_each_process_chooses() -> None:
    assert agree_in_deployment(MODEL) is choose_here
    assert agree_in_job(MODEL) is choose_here


@pytest.mark.usefixtures("serve_context")
async def test_a_replica_without_a_cluster_chooses() -> None:
    assert agree_in_deployment(MODEL) is choose_here


def test_workers_of_a_job_never_replace_a_choice(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        @staticmethod
        def get_job_id() -> str:
            return "07"

    monkeypatch.setattr(agreement.ray, "get_runtime_context", Context)
    monkeypatch.setattr(agreement.ray, "is_initialized", lambda: True)

    assert agree_in_job(MODEL)(STRONG, choosing(BFLOAT16)).name == BFLOAT16
    assert agree_in_job(MODEL)(STRONG, never).name == BFLOAT16
    with pytest.raises(CheckpointError, match="model org/m, job 07"):
        agree_in_job(MODEL)(WEAK, never)
