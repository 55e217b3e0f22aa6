"""Device, CPUs and replicas of models on machines of every kind, and the refusals with their numbers."""

import pytest

from rerank_service.config import Dtype
from rerank_service.errors import ConfigError
from rerank_service.tools.catalogue import KnownModel, known_model
from rerank_service.tools.catalogue.fit import Gpu, Machine
from rerank_service.tools.deployment.placement import DeviceChoice, place
from rerank_service.tools.deployment.serve_yaml import Bounds

GB = 1_000_000_000
LAPTOP = Machine(16 * GB, (), has_bfloat16=False, num_cpus=8)
TINY = Machine(2 * GB, (), has_bfloat16=False, num_cpus=1)
SERVER = Machine(512 * GB, (), has_bfloat16=True, num_cpus=64)
T4 = Machine(32 * GB, (Gpu("T4", 16 * GB),), has_bfloat16=False, num_cpus=8)
EIGHT_H100 = Machine(1000 * GB, (Gpu("H100", 80 * GB),) * 8, has_bfloat16=True, num_cpus=128)
UNKNOWN = KnownModel(name="mine", id="mine", application="mine", source="")


def model(name: str) -> KnownModel:
    found = known_model(name)
    assert found is not None
    return found


MINILM, BGE, QWEN = model("all-MiniLM-L6-v2"), model("bge-reranker-v2-m3"), model("Qwen3-Reranker-8B")


@pytest.mark.parametrize(
    ("machine", "name", "num_gpus", "num_cpus", "replicas", "is_slow"),
    [
        (LAPTOP, "all-MiniLM-L6-v2", 0, 1, (2, 8), False),
        (TINY, "all-MiniLM-L6-v2", 0, 1, (1, 1), False),
        (SERVER, "all-MiniLM-L6-v2", 0, 1, (2, 64), False),
        (LAPTOP, "bge-reranker-v2-m3", 0, 8, (1, 1), True),
        (SERVER, "bge-reranker-v2-m3", 0, 12, (2, 5), True),
        (T4, "all-MiniLM-L6-v2", 1, 4, (1, 1), False),
        (T4, "bge-reranker-v2-m3", 1, 4, (1, 1), False),
        (EIGHT_H100, "Qwen3-Reranker-8B", 1, 4, (1, 8), False),
    ],
)
def test_one_model(
    machine: Machine, name: str, num_gpus: float, num_cpus: float, replicas: tuple[int, int], is_slow: bool
) -> None:
    (placement,) = place([model(name)], machine)
    assert placement[:3] == (num_gpus, num_cpus, replicas)
    assert (placement.warning is not None) == is_slow


def test_a_model_too_large_for_the_gpu_runs_on_the_cpu_with_a_warning() -> None:
    (placement,) = place([QWEN], T4._replace(memory_bytes=64 * GB))
    assert placement.num_gpus == 0
    assert placement.warning == "Qwen3-Reranker-8B is slow on a CPU; it does not fit this machine's GPU"


def test_models_share_the_cpus() -> None:
    placements = place([MINILM, model("bge-reranker-base")], LAPTOP)
    assert sum(one.num_cpus * one.replicas.max_replicas for one in placements) <= LAPTOP.num_cpus
    assert all(one.replicas.min_replicas >= 1 for one in placements)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_first_replicas_never_need_more_than_the_machine_has(count: int) -> None:
    names = ["all-MiniLM-L6-v2", *(f"ms-marco-{name}-v2" for name in ("TinyBERT-L2", "MiniLM-L6", "MiniLM-L12"))]
    models = [model(name) for name in [*names, "bge-reranker-base"][:count]]
    for machine in (TINY._replace(memory_bytes=64 * GB), LAPTOP, T4, EIGHT_H100):
        placements = place(models, machine)
        first = [(one, one.replicas.min_replicas) for one in placements]
        assert sum(one.num_cpus * number for one, number in first) <= machine.num_cpus
        assert sum(one.num_gpus * number for one, number in first) <= len(machine.gpus)


def test_models_share_one_gpu_if_both_fit() -> None:
    assert [one.num_gpus for one in place([MINILM, model("bge-reranker-base")], T4)] == [0.5, 0.5]
    assert [one.replicas for one in place([MINILM, BGE], EIGHT_H100)] == [(1, 4), (1, 4)]


def test_a_gpu_that_can_be_ignored() -> None:
    (placement,) = place([MINILM], T4, DeviceChoice.CPU)
    assert placement.num_gpus == 0


def test_chosen_replicas_share_cpus_and_gpus() -> None:
    (on_cpu,) = place([MINILM], LAPTOP._replace(memory_bytes=64 * GB), replicas={MINILM.id: Bounds(16, 16)})
    (on_gpu,) = place([MINILM], T4, replicas={MINILM.id: Bounds(1, 3)})
    assert (on_cpu.num_cpus, on_cpu.replicas) == (0.5, (16, 16))
    assert (on_gpu.num_gpus, on_gpu.replicas) == (0.33, (1, 3))


def test_a_model_of_unknown_size_is_placed() -> None:
    (placement,) = place([UNKNOWN], LAPTOP)
    assert placement[:3] == (0, 1, (2, 8))


@pytest.mark.parametrize(
    ("machine", "device", "dtype", "replicas", "parts"),
    [
        (
            LAPTOP,
            "auto",
            None,
            None,
            ["Qwen3-Reranker-8B needs 3", "this machine has 16.0 GB and no GPU", "smaller model"],
        ),
        (T4, "auto", None, None, ["needs 3", "this machine has 32.0 GB, and its GPU has 16.0 GB"]),
        (
            T4,
            "cuda",
            None,
            None,
            ["of GPU memory; this machine's GPU has 16.0 GB. Choose a smaller model", "--device auto"],
        ),
        (LAPTOP, "cuda", None, None, ["this machine has no GPU that torch can use"]),
        (SERVER, "auto", Dtype.FLOAT32, Bounds(20, 20), ["of memory for 20 replicas", "Lower --replicas"]),
        (
            EIGHT_H100,
            "cuda",
            None,
            Bounds(1, 64),
            ["of GPU memory", "80.0 GB, shared by 8 replicas", "Lower --replicas"],
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_numbers(
    machine: Machine, device: str, dtype: Dtype | None, replicas: Bounds | None, parts: list[str]
) -> None:
    chosen = {QWEN.id: replicas} if replicas else None
    with pytest.raises(ConfigError) as caught:
        place([QWEN], machine, DeviceChoice(device), dtype, chosen)
    assert all(part in str(caught.value) for part in parts), caught.value
