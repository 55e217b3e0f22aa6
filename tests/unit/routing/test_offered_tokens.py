"""The load that the autoscaler sees: each request counts once, whether it is accepted or refused for lack of
capacity."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.stack.simulated import SimulatedEngine
from rerank_service.config import ModelConfig, RerankConfig
from rerank_service.errors import QueueFull, RequestTimedOut, WaitTooLong
from rerank_service.messages import Deadline, Fitting, Shard, ShardScores
from rerank_service.replica.scorer import ModelScorer
from rerank_service.routing.ranker import Ranker, RefusedRequests
from tests.local_service import local_router

MODEL = ModelConfig.model_validate({"id": "m", "checkpoint": {"source": "/m"}, "batching": {"max_batch_tokens": 500}})
TEXT = "x" * 368
NUM_TOKENS = 100
"""Tokens of a pair with `TEXT`, as the simulated engine counts them."""


def shard(num_pairs: int, timeout_s: float | None = None, is_counted: bool = False) -> Shard:
    tokens = num_pairs * NUM_TOKENS
    passages = (TEXT,) * num_pairs
    return Shard("r", "m", "", passages, tuple(range(num_pairs)), Fitting(), tokens, tokens, timeout_s, is_counted)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture
async def scorer(threads: ThreadPoolExecutor) -> ModelScorer:
    """A scorer with at most 1,000 tokens per second, which has measured its speed."""
    scorer = ModelScorer(MODEL, SimulatedEngine(1_000.0), threads, threads)
    await scorer.score(shard(1, is_counted=True))
    assert scorer.offered_tokens == 0
    return scorer


async def busy(scorer: ModelScorer) -> "asyncio.Task[ShardScores]":
    """Occupies the scorer with fifty seconds of uncounted work that never finishes and is due before the tests'
    shards."""
    work = asyncio.ensure_future(scorer.score(shard(500, timeout_s=10.0, is_counted=True)))
    while not scorer.scheduler.queue.num_tokens:
        await asyncio.sleep(0)
    return work


async def test_an_accepted_shard_counts(scorer: ModelScorer) -> None:
    await scorer.score(shard(3))
    assert scorer.offered_tokens == 3 * NUM_TOKENS


async def test_a_shard_refused_for_lack_of_capacity_counts(scorer: ModelScorer) -> None:
    work = await busy(scorer)
    with pytest.raises(WaitTooLong):
        await scorer.score(shard(1, timeout_s=20.0))
    scorer.scheduler.admission.max_queued_tokens = 100
    with pytest.raises(QueueFull):
        await scorer.score(shard(1))
    assert scorer.offered_tokens == 2 * NUM_TOKENS
    work.cancel()


async def test_a_shard_that_an_idle_replica_could_not_score_in_time_does_not_count(scorer: ModelScorer) -> None:
    work = await busy(scorer)
    with pytest.raises(WaitTooLong):
        await scorer.score(shard(200, timeout_s=20.0))  # at least 20 s of work, of which 16 s may be promised
    assert scorer.offered_tokens == 0
    work.cancel()


async def test_a_shard_dropped_before_it_was_tokenised_counts_by_estimate(
    scorer: ModelScorer, threads: ThreadPoolExecutor
) -> None:
    """The ingress cancels a shard when another replica has refused a shard of the same request."""
    is_held = threading.Event()
    threads.submit(is_held.wait, 60.0)
    call = asyncio.ensure_future(scorer.score(shard(2)))
    await asyncio.sleep(0)  # the call is waiting for the tokenising thread
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert scorer.offered_tokens == 2 * NUM_TOKENS
    is_held.set()


async def test_an_estimate_is_not_larger_than_the_models_window(
    scorer: ModelScorer, threads: ThreadPoolExecutor
) -> None:
    is_held = threading.Event()
    threads.submit(is_held.wait, 60.0)
    long = replace(shard(2), num_tokens=1_000_000)
    with pytest.raises(RequestTimedOut):
        await scorer.score(replace(long, timeout_s=0.05))
    assert scorer.offered_tokens == 2 * SimulatedEngine.window_tokens
    is_held.set()


async def test_a_shard_that_another_replica_counted_does_not_count_again(scorer: ModelScorer) -> None:
    work = await busy(scorer)
    with pytest.raises(WaitTooLong):
        await scorer.score(shard(1, timeout_s=20.0, is_counted=True))
    assert scorer.offered_tokens == 0
    work.cancel()


class Refusing:
    """A deployment that refuses its first call and answers all others. It keeps the received shards."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []

    def remote(self, shard: Shard) -> Any:
        self.shards.append(shard)
        answer = ShardScores((1.0,) * len(shard.passages), (9,), (False,), (False,), 0.0, 0.0, 0.0)
        future: asyncio.Future[ShardScores] = asyncio.get_running_loop().create_future()
        if len(self.shards) == 1:
            future.set_exception(WaitTooLong(9.0, 5.0, 1.0, False, 5))
        else:
            future.set_result(answer)
        future.cancel = lambda *_: False  # type: ignore[method-assign]
        return future


@pytest.mark.parametrize(
    ("client_id", "passage", "is_counted"), [("a", "p", True), ("b", "p", False), ("a", "q", False), (None, "p", False)]
)
async def test_a_refused_request_and_its_retry_count_once(
    client_id: str | None, passage: str, is_counted: bool
) -> None:
    config = RerankConfig(models=(MODEL,))
    replica = Refusing()
    ranker = Ranker(local_router(config, {"m": replica}), config)
    with pytest.raises(WaitTooLong):
        await ranker.rank("m", "query", ["p"], Fitting(), Deadline.after(60.0), client_id="a")
    await ranker.rank("m", "query", [passage], Fitting(), Deadline.after(60.0), client_id=client_id)
    assert [one.is_counted for one in replica.shards] == [False, is_counted]


def test_refusals_are_remembered_for_two_minutes_and_no_more_than_ten_thousand() -> None:
    now_s = 0.0
    refused = RefusedRequests(lambda: now_s)
    for number in range(10_001):
        refused.add(str(number), "q", ["p"])
    assert not refused.has("0", "q", ["p"])
    assert refused.has("1", "q", ["p"])
    now_s = 121.0
    assert not refused.has("1", "q", ["p"])
