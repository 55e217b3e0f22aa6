"""Groups calls that reach a replica at the same time and tokenises each group together, using `@serve.batch`.

`@serve.batch` closes a batch after a set time, so it must not form the forward batches. Here it only collects calls, by
default without waiting, and the decorated function returns at once (docs/decisions/0001). The module does not depend on
models or HTTP.
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
    """Collects the calls of one model. A collector outlives the model's scorers, because `@serve.batch` never ends its
    task."""

    def __init__(self) -> None:
        # Each collector has its own function. With a method of the class, all instances would share the queue and
        # settings of `@serve.batch`, so the first model's tokenizer would also tokenise calls for other models.
        @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0, max_concurrent_batches=8)
        async def collect(starts: list[StartTokenising], shards: list[Shard]) -> list[TokenisedFuture]:
            futures: list[TokenisedFuture] = []
            calls = zip(starts, shards, strict=True)
            for start, group in groupby(calls, key=itemgetter(0)):  # a pool may have reloaded the model in between
                futures += start([shard for _, shard in group])
            return futures

        self._batched = cast(Any, collect)  # Serve's annotations only cover batches of one argument
        self.collect: Collect = self._batched
        """Starts tokenising a shard together with other shards that arrive at the same time."""

    def configure(self, batching: BatchingConfig) -> None:
        """Applies settings that may change while the replica runs."""
        self._batched.set_max_batch_size(batching.collect_max_calls)
        self._batched.set_batch_wait_timeout_s(batching.collect_wait_ms / 1000)
