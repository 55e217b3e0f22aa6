"""Tokenises calls that reach a replica at the same time together: `@serve.batch` in front of a scorer.

`@serve.batch` closes a batch by a clock, so it must not decide the forward batches. Here it only collects calls, with a
wait of zero by default, and its body returns at once (docs/decisions/0001). Independent of models and HTTP.
"""

from itertools import groupby
from operator import itemgetter
from typing import Any, cast

from ray import serve

from rerank_service.config import BatchingConfig
from rerank_service.messages import Shard
from rerank_service.replica.scorer import Collect, StartTokenising, TokenisedFuture

__all__ = ["Collector"]


class Collector:
    """Collects the calls of one model. It outlives the model's scorers, because `@serve.batch` never ends its task."""

    def __init__(self) -> None:
        # A function of each collector, not a method of the class: instances share the queue and the settings of a
        # `@serve.batch` method, so calls of two models would be tokenised by the first one's tokenizer.
        @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0, max_concurrent_batches=8)
        async def collect(starts: list[StartTokenising], shards: list[Shard]) -> list[TokenisedFuture]:
            futures: list[TokenisedFuture] = []
            calls = zip(starts, shards, strict=True)
            for start, group in groupby(calls, key=itemgetter(0)):  # a pool may have reloaded the model in between
                futures += start([shard for _, shard in group])
            return futures

        self._batched = cast(Any, collect)  # Serve's annotations know batches of one argument only
        self.collect: Collect = self._batched
        """Starts tokenising a shard together with others that arrive at the same time."""

    def configure(self, batching: BatchingConfig) -> None:
        """Applies live knobs."""
        self._batched.set_max_batch_size(batching.collect_max_calls)
        self._batched.set_batch_wait_timeout_s(batching.collect_wait_ms / 1000)
