"""Unhealthy schedulers: the device is lost, the known pair fails, or a forward pass does not return."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest
import torch

from rerank_service.engine.device import launch
from rerank_service.engine.device.cuda import is_final
from rerank_service.engine.device.launch import TorchEngine
from rerank_service.engine.protocol import EncodedPair
from rerank_service.errors import DeviceFailed, EngineFailed, NonFiniteLogit
from rerank_service.replica.scheduler import Scheduler

KNOWN, POISON, LOST = 7, -1, -2
ILLEGAL = "CUDA error: an illegal memory access was encountered"


def pair(value: int) -> EncodedPair:
    return EncodedPair(np.full(10, value, np.int32), 10, False)


class Device(TorchEngine[EncodedPair]):
    """Scores a pair by its first token. A test chooses the failure."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.broken: Exception | None = None
        self.logit: float | None = None
        self.on_pass: Callable[[], None] = lambda: None
        self.batches: list[list[int]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.has_started = threading.Event()

    def forward(self, pairs: Sequence[EncodedPair]) -> torch.Tensor:
        values = [int(one.token_ids[0]) for one in pairs]
        self.batches.append(values)
        self.has_started.set()
        assert self.may_go_on.wait(60)
        self.on_pass()
        if LOST in values:
            self.broken = RuntimeError(ILLEGAL)
        if self.broken is not None:
            raise self.broken
        if POISON in values:
            raise RuntimeError("an index is out of bounds")
        return torch.tensor([float(value) if self.logit is None else self.logit for value in values])


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
async def scheduler(device: Device) -> AsyncIterator[Scheduler[EncodedPair]]:
    scheduler = Scheduler(device, max_batch_tokens=100, max_queued_tokens=10_000, known_pair=pair(KNOWN))
    yield scheduler
    device.may_go_on.set()
    await scheduler.close()


async def until_unhealthy(scheduler: Scheduler[EncodedPair]) -> EngineFailed:
    """Repeats the health check as Serve does. If the scheduler stays healthy, the test's timeout ends the loop."""
    while True:
        try:
            scheduler.check()
        except EngineFailed as error:
            return error
        await asyncio.sleep(0.001)


async def fail(scheduler: Scheduler[EncodedPair], request_id: str, value: int = 1) -> type[Exception]:
    with pytest.raises((EngineFailed, NonFiniteLogit)) as caught:
        await scheduler.submit(request_id, [pair(value)])
    return caught.type


@pytest.mark.parametrize(
    "message",
    [
        ILLEGAL,
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
        "CUDA error: uncorrectable ECC error encountered",
        ILLEGAL + "\nC++ CapturedTraceback:\n#4 c10::Error::Error",  # with TORCH_SHOW_CPP_STACKTRACES=1
        "CUDA error: uncorrectable NVLink error detected during the execution",
    ],
)
def test_errors_that_lose_a_device(message: str) -> None:
    assert is_final(RuntimeError(message))
    if hasattr(torch, "AcceleratorError"):
        assert is_final(torch.AcceleratorError(message))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: invalid configuration argument"),
        torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"),
        torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture"),
        torch.AcceleratorError("CUDA error: dependency created on uncaptured work in another stream"),
        torch.AcceleratorError("CUDA error: too many resources requested for launch"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        ValueError(ILLEGAL),
    ],
)
def test_errors_that_a_device_survives(error: Exception) -> None:
    assert not is_final(error)


async def test_a_lost_device_fails_all_requests_at_once_and_receives_no_more_work(
    scheduler: Scheduler[EncodedPair], device: Device
) -> None:
    await scheduler.submit("first", [pair(1)])
    device.may_go_on.clear()
    device.has_started.clear()
    lost = asyncio.ensure_future(scheduler.submit("lost", [pair(LOST)]))
    await asyncio.to_thread(device.has_started.wait, 60)
    waiting = [asyncio.ensure_future(scheduler.submit(f"waiting {number}", [pair(1)])) for number in range(5)]
    await asyncio.sleep(0)
    device.may_go_on.set()

    for call in (lost, *waiting):
        with pytest.raises(DeviceFailed, match="illegal memory access"):
            await call
    num_batches = len(device.batches)
    with pytest.raises(DeviceFailed):
        scheduler.check()
    assert await fail(scheduler, "later") is DeviceFailed
    assert len(device.batches) == num_batches


async def test_an_error_raised_while_polling_for_logits_does_not_end_the_loop(
    scheduler: Scheduler[EncodedPair], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Event.query` raises errors that the device has had since the launch."""

    class Event:
        def query(self) -> bool:
            raise RuntimeError(ILLEGAL)

        def synchronize(self) -> None:
            raise RuntimeError(ILLEGAL)

    class Pending(launch.DeviceLogits):
        def __init__(self, logits: torch.Tensor) -> None:
            super().__init__(logits)
            self._event = Event()  # type: ignore[assignment]

    await scheduler.submit("first", [pair(1)])
    monkeypatch.setattr(launch, "DeviceLogits", Pending)

    assert await fail(scheduler, "r") is DeviceFailed


async def test_poison_never_makes_a_replica_unhealthy(scheduler: Scheduler[EncodedPair], device: Device) -> None:
    for number in range(10):
        assert await fail(scheduler, f"poison {number}", POISON) is EngineFailed
        scheduler.check()
        await asyncio.sleep(0.01)
        scheduler.check()

    assert [KNOWN] in device.batches[1:]  # the engine was suspected and tested
    assert (await scheduler.submit("good", [pair(3)])).logits == (3.0,)


async def test_one_poisonous_request_that_is_repeated_is_not_suspicious(
    scheduler: Scheduler[EncodedPair], device: Device
) -> None:
    for _ in range(10):
        await fail(scheduler, "poison", POISON)
    assert device.batches.count([KNOWN]) == 1


@pytest.mark.parametrize("logit", [None, float("nan"), 8.0])
async def test_an_engine_that_fails_a_known_pair_is_unhealthy_until_it_works_again(
    scheduler: Scheduler[EncodedPair], device: Device, logit: float | None
) -> None:
    """Scoring the known pair raises an error, gives NaN, or gives a different logit than before."""
    await scheduler.submit("first", [pair(1)])
    device.broken = RuntimeError("something odd") if logit is None else None
    for number in range(3):
        if logit == 8.0:
            await fail(scheduler, f"r{number}", POISON)
            device.logit = logit
        else:
            device.logit = logit
            await fail(scheduler, f"r{number}")

    assert "a known pair fails" in str(await until_unhealthy(scheduler))
    assert await fail(scheduler, "another") is EngineFailed

    device.broken, device.logit = None, None
    while True:
        try:
            scheduler.check()
            break
        except EngineFailed:
            await asyncio.sleep(0.001)
    assert (await scheduler.submit("good", [pair(3)])).logits == (3.0,)


async def test_a_pass_that_does_not_return_is_unhealthy(
    scheduler: Scheduler[EncodedPair], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler is unhealthy after 30 s, because the pass should take milliseconds, and healthy again when the pass
    returns."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    for number in range(3):
        await scheduler.submit(f"r{number}", [pair(1)])
        now[0] += 0.01
    device.may_go_on.clear()
    device.has_started.clear()
    hanging = asyncio.ensure_future(scheduler.submit("hanging", [pair(1)]))
    await asyncio.to_thread(device.has_started.wait, 60)

    for _ in range(30):
        scheduler.check()
        now[0] += 1.0
    scheduler.check()
    now[0] += 1.0
    with pytest.raises(EngineFailed, match="has not returned in time"):
        scheduler.check()
    assert await fail(scheduler, "another") is EngineFailed

    device.may_go_on.set()
    assert (await hanging).logits == (1.0,)
    scheduler.check()


@pytest.mark.parametrize(("batch_s", "limit_s"), [(None, 300), (10.0, 200)])
async def test_a_slow_pass_does_not_count_as_hanging(
    scheduler: Scheduler[EncodedPair],
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    batch_s: float | None,
    limit_s: int,
) -> None:
    """While the speed is unknown, a pass may compile for minutes. Later, a pass may take 20 times its expected time."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    if batch_s is not None:
        device.on_pass = lambda: now.__setitem__(0, now[0] + batch_s)
        await scheduler.submit("slow", [pair(1)] * 10)
        device.on_pass = lambda: None
    device.may_go_on.clear()
    device.has_started.clear()
    call = asyncio.ensure_future(scheduler.submit("hanging", [pair(1)] * 10))
    await asyncio.to_thread(device.has_started.wait, 60)

    for _ in range(limit_s):
        scheduler.check()
        now[0] += 1.0
    now[0] += 1.0
    with pytest.raises(EngineFailed, match="has not returned in time"):
        scheduler.check()
    device.may_go_on.set()
    await call
