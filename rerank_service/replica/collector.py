"""Calls that reach a replica together are tokenised together: `@serve.batch` in front of a scorer.

`@serve.batch` closes a batch by a clock, so it must not be what decides the forward batches; here it only collects,
with a wait of zero, and its body returns at once (docs/decisions/0001). Knows nothing of models or of HTTP.
"""

import asyncio
from itertools import groupby
from operator import itemgetter

from ray import serve

from rerank_service.config import BatchingConfig
from rerank_service.messages import Shard
from rerank_service.replica.scorer import StartTokenising, Tokenised

__all__ = ["Collector"]


class Collector:
    """Collects the calls of one model. It outlives the model's scorers, since `@serve.batch` never ends its task."""

    def __init__(self) -> None:
        # Made here and not as a method: instances of a class share a `@serve.batch` method's queue and settings, and a
        # batch of two models' calls would be tokenised by the first one's tokenizer.
        @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0, max_concurrent_batches=8)
        async def collect(calls: list[tuple[StartTokenising, Shard]]) -> "list[asyncio.Future[Tokenised]]":
            futures: list[asyncio.Future[Tokenised]] = []
            for start, group in groupby(calls, key=itemgetter(0)):  # a pool may have loaded the model anew meanwhile
                futures += start([shard for _, shard in group])
            return futures

        self._collect = collect

    def configure(self, batching: BatchingConfig) -> None:
        """Applies live knobs."""
        self._collect.set_max_batch_size(batching.collect_max_calls)  # type: ignore[attr-defined]
        self._collect.set_batch_wait_timeout_s(batching.collect_wait_ms / 1000)  # type: ignore[attr-defined]

    async def collect(self, start: StartTokenising, shard: Shard) -> "asyncio.Future[Tokenised]":
        """Starts tokenising a shard, by `start`, with those that came at the same time."""
        return await self._collect((start, shard))
