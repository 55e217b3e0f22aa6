"""The scheduler with a device that a test can pause at any batch."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from rerank_service.engine.protocol import EncodedPair
from rerank_service.errors import EngineFailed, NonFiniteLogit, PairTooLong, QueueFull, WaitTooLong
from rerank_service.replica.scheduler import Scheduler


def pairs(count: int, value: int = 1, length: int = 10) -> list[EncodedPair]:
    """Pairs with the logit `value`. With `CRASH`, `NAN` or `OUR_ERROR` as the value, scoring them fails."""
    return [EncodedPair(np.full(length, value, np.int32), length, False) for _ in range(count)]


CRASH, NAN, OUR_ERROR = -1, -2, -3


class Ready:
    """Logits that are ready immediately."""

    is_ready = True

    def __init__(self, logits: list[float]) -> None:
        self._logits = logits

    def wait(self) -> list[float]:
        return self._logits


class Device:
    """Scores a pair by its first token, records the batches, and can be paused."""

    max_in_flight = 1
    memory_tokens: int | None = None

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.is_free = threading.Event()
        self.is_free.set()
        self.has_started = threading.Event()

    def launch(self, batch: Sequence[EncodedPair]) -> "Ready":
        return Ready(self.score(batch))

    def score(self, batch: Sequence[EncodedPair]) -> list[float]:
        values = [int(pair.token_ids[0]) for pair in batch]
        self.batches.append(values)
        self.has_started.set()
        assert self.is_free.wait(20)
        if CRASH in values:
            raise RuntimeError("device-side assert")
        if OUR_ERROR in values:
            raise PairTooLong(0, 9, 8)
        return [math.nan if value == NAN else float(value) for value in values]

    async def hold(self, scheduler: Scheduler[EncodedPair]) -> "asyncio.Task[object]":
        """Occupies the device with a request until `is_free` is set."""
        self.is_free.clear()
        self.has_started.clear()
        blocker = asyncio.ensure_future(scheduler.submit("blocker", pairs(1, 99)))
        await asyncio.to_thread(self.has_started.wait, 20)
        self.batches.clear()
        return blocker


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device that takes 5 s per batch of 100 tokens, by its own clock."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Slow(Device):
        def score(self, batch: Sequence[EncodedPair]) -> list[float]:
            logits = super().score(batch)
            now[0] += 5.0
            return logits

    return Slow()


@pytest.fixture
async def scheduler(device: Device) -> AsyncIterator[Scheduler[EncodedPair]]:
    scheduler = Scheduler(device, max_batch_tokens=100, max_queued_tokens=10_000)
    yield scheduler
    device.is_free.set()
    await scheduler.close()


async def settle() -> None:
    """Gives the event loop ten turns, so every task runs until it has to wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_logits_come_back_in_order(scheduler: Scheduler[EncodedPair], device: Device) -> None:
    mixed = [pair for value in range(25) for pair in pairs(1, value)]

    scored = await scheduler.submit("r", mixed)

    assert scored.logits == tuple(float(value) for value in range(25))
    assert [len(batch) for batch in device.batches] == [10, 10, 5]
    assert scored.queue_s >= 0
    assert scored.forward_s > 0


async def test_an_empty_request_is_answered_at_once(scheduler: Scheduler[EncodedPair]) -> None:
    assert (await scheduler.submit("r", [])).logits == ()


async def test_pairs_wait_for_others_only_while_the_device_is_busy(
    scheduler: Scheduler[EncodedPair], device: Device
) -> None:
    blocker = await device.hold(scheduler)
    small = [asyncio.ensure_future(scheduler.submit(f"r{n}", pairs(2, n))) for n in range(5)]
    await settle()
    assert device.batches == []

    device.is_free.set()
    await asyncio.gather(blocker, *small)

    assert [len(batch) for batch in device.batches] == [10]


async def test_a_small_request_overtakes_a_large_one(scheduler: Scheduler[EncodedPair], device: Device) -> None:
    blocker = await device.hold(scheduler)
    large = asyncio.ensure_future(scheduler.submit("large", pairs(100, 1)))
    await settle()
    small = asyncio.ensure_future(scheduler.submit("small", pairs(3, 2)))
    await settle()

    device.is_free.set()
    await small
    assert not large.done()
    await asyncio.gather(blocker, large)

    assert device.batches[0].count(2) == 3


async def test_a_cancelled_request_leaves_the_queue(scheduler: Scheduler[EncodedPair], device: Device) -> None:
    blocker = await device.hold(scheduler)
    gone = asyncio.ensure_future(scheduler.submit("gone", pairs(200, 1)))
    kept = asyncio.ensure_future(scheduler.submit("kept", pairs(4, 2)))
    await settle()
    assert scheduler.queue.num_tokens == 2040

    gone.cancel()
    await settle()
    assert scheduler.queue.num_tokens == 40

    device.is_free.set()
    await asyncio.gather(blocker, kept)
    assert device.batches == [[2, 2, 2, 2]]


async def test_a_request_cancelled_in_flight_gets_no_further_batch(
    scheduler: Scheduler[EncodedPair], device: Device
) -> None:
    device.is_free.clear()
    gone = asyncio.ensure_future(scheduler.submit("gone", pairs(200, 1)))
    await asyncio.to_thread(device.has_started.wait, 20)

    gone.cancel()
    await settle()
    device.is_free.set()

    assert (await scheduler.submit("next", pairs(1, 7))).logits == (7.0,)
    assert [len(batch) for batch in device.batches] == [10, 1]


async def test_an_error_fails_only_its_own_request(scheduler: Scheduler[EncodedPair], device: Device) -> None:
    blocker = await device.hold(scheduler)
    good = [asyncio.ensure_future(scheduler.submit(f"good {n}", pairs(2, n))) for n in range(2)]
    bad = asyncio.ensure_future(scheduler.submit("bad", pairs(50, CRASH)))
    await settle()

    device.is_free.set()
    await blocker

    with pytest.raises(EngineFailed, match="RuntimeError"):
        await bad
    assert [(await task).logits for task in good] == [(0.0, 0.0), (1.0, 1.0)]
    assert scheduler.queue.num_tokens == 0
    assert (await scheduler.submit("after", pairs(1, 5))).logits == (5.0,)


async def test_the_services_own_errors_pass_unchanged(scheduler: Scheduler[EncodedPair]) -> None:
    with pytest.raises(PairTooLong):
        await scheduler.submit("r", pairs(1, OUR_ERROR))


async def test_a_logit_that_is_not_finite_is_an_error(scheduler: Scheduler[EncodedPair]) -> None:
    with pytest.raises(NonFiniteLogit, match=r"2 pair\(s\)"):
        await scheduler.submit("r", pairs(3, 1) + pairs(2, NAN))


async def test_a_wrong_number_of_logits_is_an_error() -> None:
    class Careless(Device):
        def score(self, batch: Sequence[EncodedPair]) -> list[float]:
            return [1.0]

    scheduler = Scheduler(Careless(), max_batch_tokens=100, max_queued_tokens=1000)
    with pytest.raises(EngineFailed):
        await scheduler.submit("r", pairs(3))
    await scheduler.close()


async def test_the_queue_is_bounded_but_an_empty_queue_accepts_anything(
    scheduler: Scheduler[EncodedPair], device: Device
) -> None:
    blocker = await device.hold(scheduler)
    large = asyncio.ensure_future(scheduler.submit("large", pairs(1500, 1)))
    await settle()
    assert scheduler.queue.num_tokens == 15_000

    with pytest.raises(QueueFull) as caught:
        await scheduler.submit("late", pairs(1))

    assert caught.value.retry_after_s >= 1
    device.is_free.set()
    await asyncio.gather(blocker, large)


async def test_live_knobs_apply_to_the_next_batch(scheduler: Scheduler[EncodedPair], device: Device) -> None:
    scheduler.max_batch_tokens = 40
    await scheduler.submit("r", pairs(10))
    assert [len(batch) for batch in device.batches] == [4, 4, 2]


async def test_a_dead_loop_raises_instead_of_hanging(scheduler: Scheduler[EncodedPair]) -> None:
    await scheduler.submit("r", pairs(1))
    scheduler.check()
    await scheduler.close()

    with pytest.raises(EngineFailed):
        scheduler.check()
    with pytest.raises(EngineFailed):
        await scheduler.submit("r", pairs(1))


class Later:
    """Logits or an error, ready when the test decides."""

    def __init__(self, logits: list[float]) -> None:
        self._logits = logits
        self._is_done = threading.Event()
        self._error: Exception | None = None

    @property
    def is_ready(self) -> bool:
        return self._is_done.is_set()

    def wait(self) -> list[float]:
        assert self._is_done.wait(20)
        if self._error:
            raise self._error
        return self._logits

    def finish(self, error: Exception | None = None) -> None:
        self._error = error
        self._is_done.set()


class Pipelined(Device):
    """Accepts a second batch while the first is running, as a GPU does."""

    max_in_flight = 2

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[Later] = []

    def launch(self, batch: Sequence[EncodedPair]) -> Later:  # type: ignore[override]
        self.pending.append(Later(self.score(batch)))
        return self.pending[-1]

    async def launched(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.pending) < count:
                await asyncio.sleep(0.001)


@pytest.fixture
async def pipelined() -> AsyncIterator[tuple[Scheduler[EncodedPair], Pipelined]]:
    device = Pipelined()
    scheduler: Scheduler[EncodedPair] = Scheduler(device, max_batch_tokens=100, max_queued_tokens=10_000)
    yield scheduler, device
    for pending in device.pending:
        pending.finish()
    await scheduler.close()


async def test_a_full_batch_is_launched_while_another_is_running(
    pipelined: tuple[Scheduler[EncodedPair], Pipelined],
) -> None:
    scheduler, device = pipelined
    large = asyncio.ensure_future(scheduler.submit("large", pairs(30, 3)))
    await device.launched(2)
    await settle()
    assert len(device.pending) == 2  # no third batch is launched

    device.pending[0].finish()
    await device.launched(3)
    for pending in device.pending:
        pending.finish()

    assert (await large).logits == (3.0,) * 30


async def test_a_second_batch_waits_until_it_is_full_or_the_device_is_free(
    pipelined: tuple[Scheduler[EncodedPair], Pipelined],
) -> None:
    scheduler, device = pipelined
    first = asyncio.ensure_future(scheduler.submit("first", pairs(1, 1)))
    await device.launched(1)
    others = [asyncio.ensure_future(scheduler.submit(f"r{n}", pairs(2, n))) for n in range(3)]
    await settle()
    assert device.batches == [[1]]

    device.pending[0].finish()
    await device.launched(2)
    device.pending[1].finish()
    await asyncio.gather(first, *others)

    assert [len(batch) for batch in device.batches] == [1, 6]


async def test_an_error_that_appears_after_the_launch_fails_only_its_own_request(
    pipelined: tuple[Scheduler[EncodedPair], Pipelined],
) -> None:
    scheduler, device = pipelined
    task = asyncio.ensure_future(scheduler.submit("r", pairs(2, 1)))
    await device.launched(1)
    device.pending[0].finish(RuntimeError("device-side assert"))

    with pytest.raises(EngineFailed, match="RuntimeError"):
        await task
    after = asyncio.ensure_future(scheduler.submit("after", pairs(1, 4)))
    await device.launched(2)
    device.pending[1].finish()
    assert (await after).logits == (4.0,)


async def test_a_batch_fits_the_device_memory(scheduler: Scheduler[EncodedPair], device: Device) -> None:
    device.memory_tokens = 30
    await scheduler.submit("r", pairs(10))
    assert [len(batch) for batch in device.batches] == [3, 3, 3, 1]


async def test_batches_are_a_small_share_of_the_queue(scheduler: Scheduler[EncodedPair], device: Device) -> None:
    """300 pairs are drawn in batches of 10 at first, then in smaller and smaller batches, but never fewer than 5."""
    scheduler.min_batch_tokens = 50
    await scheduler.submit("r", pairs(300))

    sizes = [len(batch) for batch in device.batches]
    assert sizes[0] == 10
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes[:-1]) == {10, 9, 8, 7, 6, 5}
    assert sum(sizes) == 300


async def test_a_refusal_states_how_long_the_queue_takes(slow: Device) -> None:
    scheduler: Scheduler[EncodedPair] = Scheduler(slow, max_batch_tokens=100, max_queued_tokens=500)
    await scheduler.submit("first", pairs(30))
    blocker = await slow.hold(scheduler)
    waiting = asyncio.ensure_future(scheduler.submit("waiting", pairs(50)))
    await settle()

    with pytest.raises(QueueFull) as caught:
        await scheduler.submit("late", pairs(20))

    assert caught.value.retry_after_s == 10  # 200 tokens over the bound, at 20 tokens per second
    slow.is_free.set()
    await asyncio.gather(blocker, waiting)
    await scheduler.close()


async def test_a_request_that_would_be_late_is_refused_at_once(slow: Device) -> None:
    """The queue has 500 tokens, and a batch of 10 tokens is running."""
    scheduler: Scheduler[EncodedPair] = Scheduler(slow, max_batch_tokens=100, max_queued_tokens=10_000)
    await scheduler.submit("first", pairs(30), timeout_s=1.0)  # an idle device accepts anything
    blocker = await slow.hold(scheduler)
    waiting = asyncio.ensure_future(scheduler.submit("waiting", pairs(50), timeout_s=60.0))
    await settle()

    with pytest.raises(WaitTooLong) as caught:
        await scheduler.submit("late", pairs(30), timeout_s=20.0)
    hurried = asyncio.ensure_future(scheduler.submit("hurried", pairs(10), timeout_s=20.0))
    await settle()

    late = caught.value
    assert late.retry_after_s == 13  # half of 510 tokens
    assert late.expected_s > late.time_s - late.reserve_s  # the figures behind the refusal
    assert late.reserve_s == pytest.approx(0.2 * late.time_s)
    assert scheduler.queue.num_tokens == 600
    slow.is_free.set()
    await asyncio.gather(blocker, waiting, hurried)
    await scheduler.close()
