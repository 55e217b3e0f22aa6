"""Calls that come together, through Serve's own `@serve.batch`, in a process that takes itself for a replica."""

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from ray.serve import context
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.schema import ReplicaRank

from rerank_service.config import BatchingConfig
from rerank_service.messages import Fitting, Shard
from rerank_service.replica.collector import Collector


@pytest.fixture(autouse=True)
async def _in_a_replica() -> AsyncIterator[None]:
    """`@serve.batch` reads the replica's `max_ongoing_requests`."""
    context._set_internal_replica_context(
        replica_id=ReplicaID("replica", DeploymentID("model", "application")),
        servable_object=print,
        _deployment_config=DeploymentConfig(max_ongoing_requests=1000),
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )
    yield
    context._INTERNAL_REPLICA_CONTEXT = None
    queues = asyncio.all_tasks() - {asyncio.current_task()}
    for task in queues:
        task.cancel()
    await asyncio.gather(*queues, return_exceptions=True)
    gc.collect()  # Serve's queue makes an event loop of its own if it is deleted outside of one


class Tokeniser:
    """Remembers which shards came together; the result tells whose it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.jobs: list[list[str]] = []

    def start(self, shards: Sequence[Shard]) -> list[Any]:
        self.jobs.append([shard.query for shard in shards])
        futures = [asyncio.get_running_loop().create_future() for _ in shards]
        for future, shard in zip(futures, shards, strict=True):
            future.set_result(f"{self.name} {shard.query}")
        return futures


async def ask(collector: Collector, tokeniser: Tokeniser, *queries: str) -> list[str]:
    shards = [Shard("r", "m", query, ("p",), (0,), Fitting(), 10, 10) for query in queries]
    futures = await asyncio.gather(*(collector.collect(tokeniser.start, shard) for shard in shards))
    return [await future for future in futures]  # type: ignore[misc]


async def test_calls_that_come_together_are_tokenised_together() -> None:
    tokeniser = Tokeniser("a")

    assert await ask(Collector(), tokeniser, "1", "2", "3") == ["a 1", "a 2", "a 3"]
    assert tokeniser.jobs == [["1", "2", "3"]]


async def test_calls_of_two_models_are_each_tokenised_by_their_own() -> None:
    """In a pool: each model has a tokenizer of its own, and another's tokens would give it a wrong logit."""
    one, other = Tokeniser("one"), Tokeniser("other")
    first, second = Collector(), Collector()

    assert await asyncio.gather(ask(first, one, "1", "2"), ask(second, other, "3", "4")) == [
        ["one 1", "one 2"],
        ["other 3", "other 4"],
    ]


async def test_a_model_loaded_anew_tokenises_its_own_calls() -> None:
    before, after, collector = Tokeniser("before"), Tokeniser("after"), Collector()

    answers = await asyncio.gather(ask(collector, before, "1"), ask(collector, after, "2"), ask(collector, before, "3"))

    assert answers == [["before 1"], ["after 2"], ["before 3"]]


async def test_knobs_are_a_models_own() -> None:
    first, second, tokeniser = Collector(), Collector(), Tokeniser("a")
    first.configure(BatchingConfig(collect_max_calls=1))
    second.configure(BatchingConfig(collect_max_calls=8))

    await ask(first, tokeniser, "1", "2")

    assert tokeniser.jobs == [["1"], ["2"]]
