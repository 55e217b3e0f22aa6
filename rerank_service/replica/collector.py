"""Groups calls that reach a replica at the same time and tokenises each group together.

The scheduler forms the forward batches, because it waits only while the device is busy (docs/decisions/0001). The
module does not depend on models, HTTP or Ray.
"""

import asyncio
from itertools import groupby
from operator import itemgetter

from rerank_service.config import BatchingConfig
from rerank_service.replica.scorer import StartTokenising, TokenisingCall

__all__ = ["Collector"]


class Collector:
    """Collects the calls of one model. A collector outlives the model's scorers, because a pool may unload the
    model."""

    def __init__(self) -> None:
        self._max_calls, self._max_wait_s = 1, 0.0
        self._calls: list[tuple[StartTokenising, TokenisingCall]] = []
        self._start: asyncio.Handle | None = None
        self.configure(BatchingConfig())

    def configure(self, batching: BatchingConfig) -> None:
        """Applies settings that may change while the replica runs."""
        self._max_calls, self._max_wait_s = batching.collect_max_calls, batching.collect_wait_ms / 1000

    def collect(self, start: StartTokenising, call: TokenisingCall) -> None:
        """Tokenises a call's shard with `start`, together with other calls that arrive in time.

        Without a wait, these are the calls of the same turn of the event loop.
        """
        self._calls.append((start, call))
        if len(self._calls) >= self._max_calls:
            self._start_all()
        elif self._start is None:
            loop, wait_s = asyncio.get_running_loop(), self._max_wait_s
            self._start = loop.call_later(wait_s, self._start_all) if wait_s else loop.call_soon(self._start_all)

    def _start_all(self) -> None:
        if self._start is not None:
            self._start.cancel()
        calls, self._calls, self._start = self._calls, [], None
        for start, group in groupby(calls, key=itemgetter(0)):  # a pool may have reloaded the model in between
            start([call for _, call in group])
