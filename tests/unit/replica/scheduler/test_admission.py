"""Admission rules, batch sizes and the drain rate, tested alone and in the scheduler and the simulated replica."""

import asyncio
import math
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rerank_service.engine.protocol import EncodedPair
from rerank_service.errors import QueueFull, WaitTooLong
from rerank_service.replica.scheduler import FairQueue, Scheduler
from rerank_service.replica.scheduler.admission import Activity, Admission, DrainRate, batch_budget, may_launch
from rerank_service.replica.scheduler.fair_queue import TokensDue
from rerank_service.tools.planning import replica as planning_replica
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.replica import SimulatedReplica, SimulatedShard
from rerank_service.tools.planning.speed import ReplicaSpeed

SPEED, BATCH_TOKENS, MAX_QUEUED_TOKENS = 1000.0, 100, 10_000


def admission(queued: Sequence[int], deadline_s: float = 60.0) -> Admission:
    queue: FairQueue[int] = FairQueue()
    for number, num_tokens in enumerate(queued):
        queue.add(str(number), number, [num_tokens], deadline_s=deadline_s)
    drain = DrainRate()
    drain.add(1000, 0.0, 1000 / SPEED)
    return Admission(queue, drain, MAX_QUEUED_TOKENS)


def test_an_empty_queue_accepts_anything() -> None:
    assert admission([]).refusal(TokensDue(0.1, 10**9), 500, 100, 0.0) is None


def test_a_refusal_by_a_full_queue_states_its_size_and_when_to_retry() -> None:
    refusal = admission([9000]).refusal(TokensDue(60.0, 4000), 0, 100, 0.0)

    assert isinstance(refusal, QueueFull)
    assert (refusal.queued_tokens, refusal.max_queued_tokens, refusal.retry_after_s) == (9000, MAX_QUEUED_TOKENS, 3)


def test_a_refusal_for_a_long_wait_states_the_wait_and_when_to_retry() -> None:
    refusal = admission([9000], deadline_s=10.0).refusal(TokensDue(10.0, 500), 500, 100, 0.0)

    assert isinstance(refusal, WaitTooLong)
    assert (refusal.expected_s, refusal.retry_after_s) == (pytest.approx(10.1), 5)


class VirtualDevice:
    """Scores at `SPEED`, when the test allows it. Only this device advances its clock."""

    max_in_flight = 1
    memory_tokens: int | None = None
    is_ready = True

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock
        self._batch: Sequence[EncodedPair] = ()
        self.has_started = threading.Event()
        self.may_go_on = threading.Event()

    def launch(self, batch: Sequence[EncodedPair]) -> "VirtualDevice":
        self._batch = batch
        self.has_started.set()
        assert self.may_go_on.wait(60)
        return self

    def wait(self) -> list[float]:
        self._clock[0] += sum(pair.num_tokens for pair in self._batch) / SPEED
        return [0.0] * len(self._batch)


async def scheduled(bursts: Sequence[Sequence[tuple[int, float]]], now: list[float]) -> list[list[str]]:
    device = VirtualDevice(now)
    scheduler: Scheduler[Any] = Scheduler(device, BATCH_TOKENS, MAX_QUEUED_TOKENS, BATCH_TOKENS // 4)
    outcomes: list[list[str]] = []
    for burst in bursts:
        device.has_started.clear()
        device.may_go_on.clear()
        calls: list[asyncio.Future[Any]] = []
        for number, (num_pairs, timeout_s) in enumerate(burst):
            request_id = f"{len(outcomes)} {number}"
            calls.append(asyncio.ensure_future(scheduler.submit(request_id, [_pair()] * num_pairs, timeout_s)))
            if number == 0:
                assert await asyncio.to_thread(device.has_started.wait, 60)
        await asyncio.sleep(0)
        device.may_go_on.set()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        outcomes.append([type(end).__name__ if isinstance(end, Exception) else "taken" for end in ends])
    await scheduler.close()
    return outcomes


def _pair() -> EncodedPair:
    return EncodedPair(np.zeros(10, np.int32), 10, False)


def simulated(bursts: Sequence[Sequence[tuple[int, float]]], now_s: float) -> list[list[str]]:
    clock = Clock()
    clock.now_s = now_s
    speed = ReplicaSpeed(SPEED, max_in_flight=1, max_batch_tokens=BATCH_TOKENS)
    replica = SimulatedReplica(clock, speed, lambda _: None)
    outcomes = []
    for burst in bursts:
        taken = [
            replica.submit(SimulatedShard(f"{len(outcomes)} {number}", None, [10] * num_pairs), clock.now_s + timeout_s)
            for number, (num_pairs, timeout_s) in enumerate(burst)
        ]
        outcomes.append(["taken" if one else "refused" for one in taken])
        clock.run()
    return outcomes


@pytest.mark.parametrize("seed", range(5))
async def test_the_scheduler_and_the_simulator_refuse_the_same_requests(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sends bursts of simultaneous calls; each burst starts when the device has finished the previous burst."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(planning_replica, "_MAX_QUEUED_TOKENS", MAX_QUEUED_TOKENS)
    rng = random.Random(seed)
    bursts = [
        [(rng.choice([1, 5, 40, 200, 700]), rng.choice([0.5, 2.0, 8.0, 20.0])) for _ in range(rng.randint(1, 40))]
        for _ in range(12)
    ]

    real = await scheduled(bursts, now)

    assert [["taken" if end == "taken" else "refused" for end in burst] for burst in real] == simulated(bursts, 1000.0)
    ends = {end for burst in real for end in burst}
    assert ends == {"taken", "QueueFull", "WaitTooLong"}


def test_activity_decays_and_remembers_a_bounded_number_of_callers() -> None:
    activity = Activity()
    activity.add("a", 8_000, 0.0)
    assert activity.tokens_per_s(0.0) == {"a": pytest.approx(1_000.0)}
    assert activity.tokens_per_s(8.0) == {"a": pytest.approx(1_000.0 / math.e)}
    assert activity.tokens_per_s(1_000.0) == {}

    for number in range(3_000):
        activity.add(str(number), 100 + number, 1_000.0)
    assert len(activity.tokens_per_s(1_000.0)) <= 1_000
    assert "2999" in activity.tokens_per_s(1_000.0)


@pytest.mark.parametrize(
    ("queued", "budget"), [(0, 1024), (1024 * 24, 1024), (2048 * 24, 2048), (4096 * 24, 4096), (10**9, 4096)]
)
def test_a_batch_is_a_small_share_of_the_queue(queued: int, budget: int) -> None:
    assert batch_budget(queued, queued // 128, 1024, 4096) == budget
    assert batch_budget(queued, queued // 128, None, 4096) == 4096


@pytest.mark.parametrize(("length", "budget"), [(126, 1024), (390, 1560), (1000, 2048), (5000, 2083)])
def test_a_short_batch_has_room_for_four_long_pairs(length: int, budget: int) -> None:
    assert batch_budget(10 * length, 10, 1024, 4096) == budget


@pytest.mark.parametrize("num_pairs", [1, 2, 3])
def test_a_batch_is_not_planned_longer_than_the_queue(num_pairs: int) -> None:
    """Admission would count tokens that are not there, and a device would not take a second batch."""
    assert batch_budget(1500 * num_pairs, num_pairs, 1024, 16_384) <= 1500 * num_pairs
    assert batch_budget(1000, 1, 1024, 4096) == 1024


def test_an_idle_device_takes_any_batch_and_a_busy_device_only_a_full_batch() -> None:
    assert may_launch(0, 2, queued_tokens=1, budget_tokens=1024)
    assert not may_launch(0, 2, queued_tokens=0, budget_tokens=1024)
    assert may_launch(1, 2, queued_tokens=1024, budget_tokens=1024)
    assert not may_launch(1, 2, queued_tokens=1023, budget_tokens=1024)
    assert not may_launch(2, 2, queued_tokens=10**6, budget_tokens=1024)


def test_idle_time_does_not_lower_the_drain_rate() -> None:
    drain = DrainRate()
    drain.add(1000, started_at_s=0.0, now_s=1.0)
    drain.add(1000, started_at_s=50.0, now_s=51.0)

    assert drain.tokens_per_s == pytest.approx(1000)
    assert drain.seconds_for(3_500) == 4


def test_a_batch_launched_behind_another_counts_from_the_end_of_the_first() -> None:
    drain = DrainRate()
    drain.add(1000, started_at_s=0.0, now_s=1.0)
    drain.add(1000, started_at_s=0.0, now_s=2.0)

    assert drain.tokens_per_s == pytest.approx(1000)


def test_short_batches_say_little_about_the_speed_of_full_ones() -> None:
    """The first batch of a replica is one short test pair; single pairs come while the replica is nearly idle."""
    drain, now_s = DrainRate(), 0.0

    def add(num_tokens: int, busy_s: float) -> None:
        nonlocal now_s
        now_s += busy_s
        drain.add(num_tokens, now_s - busy_s, now_s)

    add(20, 0.010)
    add(4_000, 0.250)
    assert drain.tokens_per_s == pytest.approx(16_000, rel=0.01)
    for _ in range(15):
        add(20, 0.010)
    assert drain.tokens_per_s == pytest.approx(16_000, rel=0.1)
    for _ in range(20):
        add(4_000, 0.500)  # the device has become slower
    assert drain.tokens_per_s == pytest.approx(8_000, rel=0.02)


def test_with_an_unknown_speed_clients_retry_after_a_second() -> None:
    assert DrainRate().seconds_for(10**9) == 1
