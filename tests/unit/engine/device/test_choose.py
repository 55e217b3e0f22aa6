"""The choice of the device, and the share of a GPU, on simulated GPUs whose memory several processes use."""

import logging
from dataclasses import dataclass, field

import pytest
import torch

from rerank_service.engine.device import cuda
from rerank_service.engine.device.choose import ChosenDevice, choose_device
from rerank_service.engine.device.cuda import Memory
from rerank_service.errors import CheckpointError

GB = 10**9
CONTEXT = 600 * 2**20


@dataclass
class Gpu:
    """A GPU that several processes use; `process` is the one that runs now."""

    total: int = 80 * GB
    reserved: dict[str, int] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    process: str = "a"
    name: str = "NVIDIA H100 80GB HBM3"
    num_multiprocessors: int = 132

    def memory(self, device: torch.device) -> Memory:
        used = sum(self.reserved.values()) + CONTEXT * len(self.reserved)
        own = self.reserved.get(self.process, 0)
        return Memory(self.total - used, self.total, own)

    def limit_memory(self, device: torch.device, share: float) -> None:
        self.limits[self.process] = share

    def start(self, process: str) -> None:
        """Creates the CUDA context of a process."""
        self.process = process
        self.reserved.setdefault(process, 0)

    def fill(self) -> None:
        """Takes all memory that the allocator of the running process may take."""
        allowed = int(self.limits.get(self.process, 1.0) * self.total)
        before = self.reserved[self.process]
        self.reserved[self.process] = min(allowed, before + self.memory(torch.device("cuda", 0)).free)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(cuda, "num_visible", lambda: 2)
    monkeypatch.setattr(cuda, "memory", gpu.memory)
    monkeypatch.setattr(cuda, "limit_memory", gpu.limit_memory)
    monkeypatch.setattr(cuda, "name", lambda device: gpu.name)
    monkeypatch.setattr(cuda, "num_multiprocessors", lambda device: gpu.num_multiprocessors)
    return gpu


@pytest.mark.parametrize(
    ("configured", "num_gpus", "expected"),
    [
        ("auto", None, ChosenDevice(torch.device("cuda", 0))),
        ("auto", 1, ChosenDevice(torch.device("cuda", 0))),
        ("auto", 0.25, ChosenDevice(torch.device("cuda", 0), 0.25)),
        ("auto", 2, ChosenDevice(torch.device("cuda", 0))),
        ("auto", 0, ChosenDevice(torch.device("cpu"))),  # Ray shows all GPUs to a replica without GPUs
        ("cpu", 1, ChosenDevice(torch.device("cpu"))),
        ("cuda", 0.5, ChosenDevice(torch.device("cuda", 0), 0.5)),
        ("cuda:1", 2, ChosenDevice(torch.device("cuda", 1))),
    ],
)
def test_the_device_follows_the_setting_and_the_reserved_gpus(
    gpu: Gpu, configured: str, num_gpus: float | None, expected: ChosenDevice
) -> None:
    assert choose_device(configured, num_gpus) == expected


def test_a_gpu_that_is_not_visible_is_refused(gpu: Gpu) -> None:
    with pytest.raises(CheckpointError, match=r"device cuda:2 is configured, but 2 GPU\(s\) are visible"):
        choose_device("cuda:2", 1)


def test_a_missing_gpu_is_reported() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(CheckpointError, match="no GPU is visible; set device: auto or cpu"):
        choose_device("cuda", 1)
    assert choose_device("auto", 1) == ChosenDevice(torch.device("cpu"))


def test_a_gpu_that_is_used_but_not_reserved_causes_a_warning(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        choose_device("cuda", 0)
    assert "set replica.num_gpus" in caplog.text


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_replicas_that_start_at_once_on_one_gpu_fit_together(gpu: Gpu, share: float) -> None:
    chosen = choose_device("auto", share)
    processes = [f"replica {number}" for number in range(round(1 / share))]
    for process in processes:  # all see an empty GPU
        gpu.start(process)
        chosen.limit_memory()
    budgets = []
    for process in processes:
        gpu.start(process)
        budgets.append(chosen.free_bytes)
    assert sum(budgets) + CONTEXT * len(processes) <= gpu.total
    assert min(budgets) == max(budgets) > 0.9 * share * gpu.total

    for process in processes:
        gpu.start(process)
        gpu.fill()
    assert [gpu.reserved[process] for process in processes] == pytest.approx(budgets, abs=2)


def test_a_whole_gpu_has_no_limit_of_its_own(gpu: Gpu) -> None:
    chosen = choose_device("auto", 1)
    gpu.start("a")
    chosen.limit_memory()
    assert gpu.limits == {}
    assert chosen.free_bytes == gpu.total - CONTEXT
    assert chosen.memory_limit_bytes == gpu.total


def test_memory_of_other_processes_is_not_counted_as_free(gpu: Gpu) -> None:
    gpu.start("another program")
    gpu.reserved["another program"] = 70 * GB
    gpu.start("replica")
    assert choose_device("auto", 0.5).free_bytes < 10 * GB


def test_the_utilisation_of_a_fraction_refers_to_the_fraction(gpu: Gpu) -> None:
    assert choose_device("auto", 1).peak_flops_per_s == 989e12
    assert choose_device("auto", 0.25).peak_flops_per_s == 989e12 / 4
    assert choose_device("cpu").peak_flops_per_s is None
    assert choose_device("cpu").memory_limit_bytes is None


def test_a_slice_is_a_gpu_of_its_own_size(gpu: Gpu) -> None:
    gpu.name, gpu.num_multiprocessors, gpu.total = "NVIDIA H100 80GB HBM3 MIG 1g.10gb", 16, 10 * GB
    chosen = choose_device("auto", 1)
    gpu.start("a")
    assert chosen.memory_limit_bytes == 10 * GB
    assert chosen.peak_flops_per_s == pytest.approx(120e12, rel=0.01)


@pytest.mark.parametrize("share", [1, 0.5])
def test_memory_that_graphs_keep_is_not_free(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """The allocator counts the memory between the tensors of a graph as reserved, and gives it to no other pass."""
    before = choose_device("auto", share).free_bytes
    of_graphs = 3 * GB
    monkeypatch.setattr(cuda, "memory", lambda _: Memory(gpu.total - CONTEXT - of_graphs, gpu.total, of_graphs))
    found = choose_device("auto", share).free_bytes
    assert found <= (gpu.total if share == 1 else before) - of_graphs
