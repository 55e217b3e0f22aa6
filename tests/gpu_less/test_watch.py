"""The software GPU itself: what it refuses, when copies arrive, and which graphs it replays."""

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.fake_cuda import FakeCuda
from tests.gpu_less.tensors import SoftwareGpu
from tests.gpu_less.watch import HostWaited

DEVICE = torch.device("cuda", 0)
OTHER = torch.device("cuda", 1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftwareGpu]:
    with SoftwareGpu(FakeCuda(monkeypatch)) as gpu:
        yield gpu


WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0, 0]),
    "tolist": lambda x: x.tolist(),
    "if": lambda x: bool((x > 0).all()),
    "copy to the host": lambda x: x.cpu(),
    "copy to pageable memory": lambda x: torch.empty(4, 3).copy_(x, non_blocking=True),
    "blocking copy to the device": lambda x: torch.ones(3).to(DEVICE),
    "copy from pageable memory": lambda x: torch.ones(3).to(DEVICE, non_blocking=True),
    "pinned but blocking": lambda x: torch.ones(3).pin_memory().to(DEVICE),
    "numbers": lambda x: torch.tensor([1, 2], device=DEVICE),
    "list index": lambda x: x[[0, 1]],
    "assignment to a list index": lambda x: x.__setitem__([0, 1], 2.0),
    "index on the host": lambda x: x[torch.tensor([0, 1])],
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "repeats": lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64, device=DEVICE), 0),
    "checked lengths": lambda x: torch.segment_reduce(
        x, "sum", lengths=torch.full((2,), 2, dtype=torch.int64, device=DEVICE)
    ),
    "synchronize": lambda x: torch.cuda.synchronize(DEVICE),
}


@pytest.mark.parametrize("name", WAITS)
@torch.inference_mode()
def test_every_wait_is_found(gpu: SoftwareGpu, name: str) -> None:
    x = torch.ones(4, 3).to(DEVICE)
    WAITS[name](x)  # allowed while loading
    with gpu.watching(), pytest.raises(HostWaited):
        WAITS[name](x)


@torch.inference_mode()
def test_work_on_the_device_is_no_wait(gpu: SoftwareGpu) -> None:
    x, index = torch.ones(4, 3).to(DEVICE), torch.zeros(2, dtype=torch.int64, device=DEVICE)
    with gpu.watching():
        y = torch.ones(3).pin_memory().to(DEVICE, non_blocking=True)
        z = (x[index] @ x.T + y.sum() * 2)[:, 1:].softmax(-1)
        z[0, :] = 0.0
        torch.empty(3, pin_memory=True).copy_(y, non_blocking=True)


@torch.inference_mode()
def test_a_copy_arrives_when_its_own_event_is_waited_for(gpu: SoftwareGpu) -> None:
    host = torch.empty(3, pin_memory=True)
    with torch.cuda.device(OTHER):
        host.copy_(torch.ones(3, device=OTHER), non_blocking=True)
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(OTHER))
    wrong = torch.cuda.Event(blocking=True)
    wrong.record(torch.cuda.current_stream(DEVICE))

    wrong.synchronize()
    assert wrong.query()
    assert host.isnan().all()
    assert not event.query()
    event.synchronize()
    assert host.tolist() == [1, 1, 1]


@torch.inference_mode()
def test_tensors_of_two_devices_do_not_mix(gpu: SoftwareGpu) -> None:
    here, there = torch.ones(2, device=DEVICE), torch.ones(2, device=OTHER)
    for other in (there, torch.ones(2)):
        with pytest.raises(RuntimeError, match="same device"):
            here + other
    assert (here + torch.tensor(1.0)).tolist() == [2, 2]  # torch takes single numbers from the host


@torch.inference_mode()
def test_a_graph_runs_only_when_it_is_replayed(gpu: SoftwareGpu) -> None:
    x = torch.ones(3, device=DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(DEVICE)):
        y = (x * 2)[1:]
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            y.sum().item()
    assert y.isnan().all()
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [10, 10]


@torch.inference_mode()
def test_memory_is_counted_by_storage(gpu: SoftwareGpu) -> None:
    memory = gpu.runtime.memory
    x = torch.zeros(1000, device=DEVICE)
    view = x[10:]
    assert memory.allocated == 4000
    del x
    assert memory.allocated == 4000
    memory.capacity = 5000
    with pytest.raises(torch.OutOfMemoryError):
        view + 1
    del view
    assert memory.allocated == 0
