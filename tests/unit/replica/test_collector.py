"""Collecting calls that arrive together, with Serve's own `@serve.batch`."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from rerank_service.config import BatchingConfig
from rerank_service.messages import Fitting, Shard
from rerank_service.replica.collector import Collector

pytestmark = pytest.mark.usefixtures("serve_context")


class Tokeniser:
    """Records which shards arrived together. Each result names its tokeniser and shard."""

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


async def test_calls_that_arrive_together_are_tokenised_together() -> None:
    tokeniser = Tokeniser("a")

    assert await ask(Collector(), tokeniser, "1", "2", "3") == ["a 1", "a 2", "a 3"]
    assert tokeniser.jobs == [["1", "2", "3"]]


async def test_calls_of_two_models_are_tokenised_separately() -> None:
    """In a pool, each model has its own tokenizer, and another model's tokens would give a wrong logit."""
    one, other = Tokeniser("one"), Tokeniser("other")
    first, second = Collector(), Collector()

    assert await asyncio.gather(ask(first, one, "1", "2"), ask(second, other, "3", "4")) == [
        ["one 1", "one 2"],
        ["other 3", "other 4"],
    ]


async def test_a_reloaded_model_tokenises_its_own_calls() -> None:
    before, after, collector = Tokeniser("before"), Tokeniser("after"), Collector()

    answers = await asyncio.gather(ask(collector, before, "1"), ask(collector, after, "2"), ask(collector, before, "3"))

    assert answers == [["before 1"], ["after 2"], ["before 3"]]


async def test_each_model_has_its_own_settings() -> None:
    first, second, tokeniser = Collector(), Collector(), Tokeniser("a")
    first.configure(BatchingConfig(collect_max_calls=1))
    second.configure(BatchingConfig(collect_max_calls=8))

    await ask(first, tokeniser, "1", "2")

    assert tokeniser.jobs == [["1"], ["2"]]
