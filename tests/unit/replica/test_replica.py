"""A replica with a simulated engine: health, load and declined shards."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.stack.simulated import SimulatedEngine
from rerank_service.config import ModelConfig
from rerank_service.engine import Engine, Truncate
from rerank_service.errors import EngineFailed, UnknownModel
from rerank_service.messages import OFFERED, START, WAITING, Declined, Fitting, Shard, ShardScores
from rerank_service.replica import base
from rerank_service.replica.replica import Replica
from rerank_service.telemetry.metrics import (
    BATCH_TOKENS,
    DEVICE_BUSY_SECONDS,
    DEVICE_MEMORY_LIMIT_BYTES,
    DEVICE_MFU,
    REPLICA_METRICS,
    Metric,
    MetricKind,
    NoMetrics,
)

pytestmark = pytest.mark.usefixtures("serve_context")

MODEL = ModelConfig.model_validate({"id": "m", "checkpoint": {"source": "/m"}, "replica": {"tokeniser_threads": 2}})
SHARD = Shard("r", "m", "a query", ("one passage", "another"), (0, 1), Fitting(), 10, 10)
ONLY_ON_GPUS = {DEVICE_MFU.name, DEVICE_MEMORY_LIMIT_BYTES.name}
STUCK = "a text on which a tokenizer never returns"


class Stuck(SimulatedEngine):
    """Tokenises one particular query only when the test allows it."""

    def __init__(self) -> None:
        super().__init__(1e6)
        self.has_started = threading.Semaphore(0)
        self.may_go_on = threading.Event()

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[Any]:
        if query == STUCK:
            self.has_started.release()
            assert self.may_go_on.wait(60)
        return super().tokenise(query, passages, truncate)


class Simulated(Replica):
    def __init__(self) -> None:
        self.engine = Stuck()
        super().__init__(MODEL)

    def load(self) -> Engine[Any]:
        return self.engine


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the metrics that the replica records."""
    names: list[str] = []

    class KeptNames(NoMetrics):
        def record(self, metric: Metric, value: float, *labels: str) -> None:
            names.append(metric.name)

    monkeypatch.setattr(base, "RayMetrics", lambda _: KeptNames())
    return names


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch, recorded: list[str]) -> Iterator[Simulated]:
    monkeypatch.setattr(base, "log_through_serve", lambda **_: None)
    replica = Simulated()
    yield replica
    replica.engine.may_go_on.set()


async def test_a_shard_of_another_model_is_an_error(replica: Simulated) -> None:
    with pytest.raises(UnknownModel):
        await replica.score(replace(SHARD, model="other"))


async def test_load_is_reported_with_each_answer_and_to_the_autoscaler(replica: Simulated) -> None:
    scores = await replica.score(SHARD)

    assert isinstance(scores, ShardScores)
    assert scores.load is not None
    assert scores.load.waiting_tokens == 0
    assert scores.load.tokens_per_s > 0
    stats = await replica.record_autoscaling_stats()
    assert stats[OFFERED] == sum(scores.num_tokens)
    assert stats[WAITING] == 0
    assert stats[START] > 0


async def test_each_health_check_renews_the_gauges_and_counts_nothing(replica: Simulated, recorded: list[str]) -> None:
    """Ray's exporter drops a gauge that is not renewed."""
    await replica.check_health()
    without_a_shard = set(recorded)
    scores = await replica.score(SHARD)
    of_the_answer = set(recorded) - without_a_shard
    recorded.clear()
    await replica.check_health()

    assert without_a_shard == {one.name for one in REPLICA_METRICS if one.kind is MetricKind.GAUGE} - ONLY_ON_GPUS
    assert set(recorded) == without_a_shard
    assert {BATCH_TOKENS.name, DEVICE_BUSY_SECONDS.name} <= of_the_answer
    assert isinstance(scores, ShardScores)
    assert scores.report is not None
    assert len(scores.report.batches) == 1  # the health check before left the counters to the answer


async def test_a_shard_is_declined_if_the_queue_is_longer_than_its_sender_assumed(replica: Simulated) -> None:
    assert isinstance(await replica.score(replace(SHARD, decline_above=0)), ShardScores)

    answer = await replica.score(replace(SHARD, decline_above=-1))

    assert isinstance(answer, Declined)
    assert answer.load.waiting_tokens == 0


async def test_a_replica_is_unhealthy_once_all_tokenising_threads_are_stuck(
    replica: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    async def stick() -> "asyncio.Future[Any]":
        call = asyncio.ensure_future(replica.score(replace(SHARD, query=STUCK)))
        assert await asyncio.to_thread(replica.engine.has_started.acquire, timeout=60)
        return call

    async def pass_a_minute() -> None:
        for _ in range(60):
            await replica.check_health()
            now[0] += 1.0
        now[0] += 1.0

    first = await stick()
    await pass_a_minute()
    await replica.check_health()  # another thread still works
    second = await stick()
    await pass_a_minute()
    with pytest.raises(EngineFailed, match="all tokenising threads"):
        await replica.check_health()

    replica.engine.may_go_on.set()
    await asyncio.gather(first, second)
    await replica.check_health()


async def test_the_engine_learns_which_part_of_a_gpu_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved: list[tuple[float, float]] = []

    def load(model: ModelConfig, num_cpus: float, *, num_gpus: float, agree: object) -> SimulatedEngine:
        reserved.append((num_cpus, num_gpus))
        return SimulatedEngine(1e6)

    monkeypatch.setattr(base, "log_through_serve", lambda **_: None)
    monkeypatch.setattr("rerank_service.replica.replica.load_engine", load)
    half = MODEL.replica.model_copy(update={"num_cpus": 2, "num_gpus": 0.5})
    for resources in (MODEL.replica, half):
        Replica(MODEL.model_copy(update={"replica": resources}))

    assert reserved == [(1, 0), (2, 0.5)]
