"""Collecting calls that arrive together."""

import asyncio
from collections.abc import Sequence
from typing import Any

from rerank_service.config import BatchingConfig
from rerank_service.messages import Fitting, Shard
from rerank_service.replica.collector import Collector


class Tokeniser:
    """Records which shards arrived together. Each result names its tokeniser and shard."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.jobs: list[list[str]] = []

    def start(self, calls: Sequence[tuple[Shard, Any]]) -> None:
        self.jobs.append([shard.query for shard, _ in calls])
        for shard, future in calls:
            future.set_result(f"{self.name} {shard.query}")


async def ask(collector: Collector, tokeniser: Tokeniser, *queries: str) -> list[str]:
    futures: list[Any] = []
    for query in queries:
        futures.append(asyncio.get_running_loop().create_future())
        shard = Shard("r", "m", query, ("p",), (0,), Fitting(), 10, 10)
        collector.collect(tokeniser.start, (shard, futures[-1]))
    return await asyncio.gather(*futures)


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
    await ask(second, tokeniser, "3", "4")

    assert tokeniser.jobs == [["1"], ["2"], ["3", "4"]]


async def test_a_full_group_does_not_wait_and_the_next_call_starts_a_new_wait() -> None:
    collector, tokeniser = Collector(), Tokeniser("a")
    collector.configure(BatchingConfig(collect_max_calls=2, collect_wait_ms=3_600_000))

    assert await ask(collector, tokeniser, "1", "2") == ["a 1", "a 2"]

    collector.configure(BatchingConfig(collect_max_calls=2, collect_wait_ms=1))
    assert await ask(collector, tokeniser, "3") == ["a 3"]


async def test_a_call_waits_for_others_as_long_as_configured() -> None:
    collector, tokeniser = Collector(), Tokeniser("a")
    collector.configure(BatchingConfig(collect_wait_ms=100))

    first = asyncio.create_task(ask(collector, tokeniser, "1"))
    await asyncio.sleep(0)  # another turn of the event loop
    assert await asyncio.gather(first, ask(collector, tokeniser, "2")) == [["a 1"], ["a 2"]]

    assert tokeniser.jobs == [["1", "2"]]
