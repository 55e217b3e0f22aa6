"""The bounds of shadow work, and what drops it first: a busy event loop, too many requests, too much text."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rerank_service.config import RerankConfig
from rerank_service.messages import Deadline, Fitting, Ranked, Shard, ShardScores
from rerank_service.routing.ranker import Ranker
from rerank_service.routing.shadow import AnsweredQuery, Shadow
from rerank_service.telemetry.metrics import Metric

VERSION = "version"
CONFIG = RerankConfig.model_validate(
    {
        "models": [
            {"id": "model", "checkpoint": {"source": "/a"}},
            {"id": VERSION, "checkpoint": {"source": "/b"}, "version": {"of": "model"}},
        ]
    }
)
_LIMIT_S = 30


class Router:
    """Scores each passage by its length, once the test lets it."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.shards: list[Shard] = []

    async def score(self, shard: Shard, deadline: Deadline) -> ShardScores:
        self.shards.append(shard)
        await self.may_answer.wait()
        logits = tuple(float(len(passage)) for passage in shard.passages)
        flags = (False,) * len(logits)
        return ShardScores(logits, (9,) * len(logits), flags, flags, 0.0, 0.0, 0.0)


class Outcomes:
    """Counts the recorded outcomes of shadow requests, and keeps all other values."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.values: dict[str, list[float]] = {}

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        if metric.name == "rerank_shadow_requests_total":
            assert labels[0] == VERSION
            self.outcomes[labels[1]] += int(value)
        else:
            self.values.setdefault(metric.name, []).append(value)


async def _is_never_busy() -> bool:
    """Replaces the measurement of the event loop, which depends on what else the machine does."""
    return False


@asynccontextmanager
async def shadowing() -> AsyncIterator[tuple[Shadow, Router, Outcomes]]:
    router, outcomes = Router(), Outcomes()
    shadow = Shadow(Ranker(router, CONFIG), outcomes, 60.0, _is_never_busy)
    try:
        yield shadow, router, outcomes
    finally:
        shadow.stop()


def answered(passages: Sequence[str], query: str = "q") -> AnsweredQuery:
    logits = [float(len(passage)) for passage in passages]
    order = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)
    return AnsweredQuery(query, passages, Ranked(order, logits, 9, 0, 1, 0.0, 0.0, 0.0, 0.0))


def offer(shadow: Shadow, *queries: AnsweredQuery) -> None:
    shadow.offer(VERSION, queries or [answered(["a", "b c"])], Fitting(), "caller")


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(_LIMIT_S):
        while not holds():
            await asyncio.sleep(0.001)


async def test_every_query_of_a_request_is_compared() -> None:
    async with shadowing() as (shadow, router, outcomes):
        router.may_answer.set()
        offer(shadow, answered(["a", "b c"]), answered(["d", "e f", "g h i"], "another query"))
        await until(lambda: outcomes.outcomes)

    assert outcomes.outcomes == {"compared": 1}
    assert [shard.query for shard in router.shards] == ["q", "another query"]
    assert {(shard.model, shard.caller) for shard in router.shards} == {(VERSION, "caller")}
    assert outcomes.values["rerank_shadow_kendall_tau"] == [1.0, 1.0]
    assert outcomes.values["rerank_shadow_largest_difference_logits"] == [0.0, 0.0]


async def test_only_a_few_requests_are_shadowed_at_once() -> None:
    async with shadowing() as (shadow, router, outcomes):
        for _ in range(10):
            offer(shadow)
        await until(lambda: len(router.shards) == 8)
        assert outcomes.outcomes == {"dropped": 2}

        router.may_answer.set()
        await until(lambda: outcomes.outcomes["compared"] == 8)
        offer(shadow)
        await until(lambda: outcomes.outcomes["compared"] == 9)

    assert outcomes.outcomes == {"dropped": 2, "compared": 9}


async def test_the_texts_of_shadowed_requests_are_bounded() -> None:
    async with shadowing() as (shadow, router, outcomes):
        large = answered(["x" * 5_000_000])
        offer(shadow, large)
        offer(shadow, large)
        assert outcomes.outcomes == {"dropped": 1}

        router.may_answer.set()
        await until(lambda: outcomes.outcomes["compared"] == 1)
        offer(shadow, large)
        await until(lambda: outcomes.outcomes["compared"] == 2)


async def test_a_busy_ingress_starts_no_shadow() -> None:
    router, outcomes = Router(), Outcomes()
    router.may_answer.set()
    offer(Shadow(Ranker(router, CONFIG), outcomes, 60.0))
    await asyncio.sleep(0)  # the pause begins
    time.sleep(0.2)  # noqa: ASYNC251 - keeps the event loop busy
    await until(lambda: outcomes.outcomes)

    assert outcomes.outcomes == {"dropped": 1}
    assert router.shards == []


async def test_stopping_drops_the_work() -> None:
    async with shadowing() as (shadow, router, outcomes):
        offer(shadow)
        await until(lambda: router.shards)
        shadow.stop()
        await until(lambda: outcomes.outcomes)

    assert outcomes.outcomes == {"dropped": 1}


@pytest.mark.parametrize("text", ["a private query"])
async def test_a_failure_is_logged_without_text(text: str, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Router):
        async def score(self, shard: Shard, deadline: Deadline) -> ShardScores:
            raise ValueError(f"cannot score {shard.query}")

    outcomes = Outcomes()
    shadow = Shadow(Ranker(Broken(), CONFIG), outcomes, 60.0, _is_never_busy)
    offer(shadow, answered(["a"], text))
    await until(lambda: outcomes.outcomes)

    assert outcomes.outcomes == {"failed": 1}
    assert "shadow failed version=version code=internal_error type=ValueError" in caplog.text
    assert text not in caplog.text
