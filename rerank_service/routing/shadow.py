"""Scores sampled requests a second time with a shadow version, after they are answered, and records how far the
rankings agree.

The work never delays an answer: it starts after the answer, is bounded in number and size, and is dropped while the
ingress or the shadow's replicas are busy. Metrics and logs contain no text.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from rerank_service.errors import QueueFull, ReplicaUnavailable, RequestTimedOut, RerankError, WaitTooLong
from rerank_service.messages import Deadline, Fitting, Ranked
from rerank_service.routing.agreement import compare
from rerank_service.routing.ranker import Ranker
from rerank_service.telemetry import metrics
from rerank_service.telemetry.metrics import MetricSink

__all__ = ["AnsweredQuery", "Shadow"]

logger = logging.getLogger(__name__)

_MAX_REQUESTS = 8
"""Maximum number of requests that shadows score at the same time in this process."""
_MAX_CHARACTERS = 8_000_000
"""Maximum number of characters of these requests: their texts stay in memory until the shadow has scored them."""
_PAUSE_S = 0.02
"""Pause between an answer and its shadow. The answer leaves first, and the pause measures how busy this process is."""
_BUSY_S = 0.05
"""A pause that is longer by this much shows that the event loop is busy. A busy ingress starts no shadow."""
_DROPPED = (QueueFull, ReplicaUnavailable, RequestTimedOut, WaitTooLong)


class AnsweredQuery(NamedTuple):
    """A query of an answered request, with its passages and their ranking."""

    query: str
    passages: Sequence[str]
    ranked: Ranked

    @property
    def num_characters(self) -> int:
        return len(self.query) + sum(map(len, self.passages))


async def _is_loop_busy() -> bool:
    """Pauses, and tells whether the pause was much longer than asked for."""
    loop = asyncio.get_running_loop()
    due_s = loop.time() + _PAUSE_S
    await asyncio.sleep(_PAUSE_S)
    return loop.time() - due_s > _BUSY_S


class Shadow:
    """Scores answered requests with shadow versions, in tasks of their own."""

    def __init__(
        self,
        ranker: Ranker,
        sink: MetricSink,
        timeout_s: float,
        is_busy: Callable[[], Awaitable[bool]] = _is_loop_busy,
    ) -> None:
        """`timeout_s` limits the time of one request; a replica refuses a request that it cannot score in this time."""
        self._ranker = ranker
        self._sink = sink
        self._timeout_s = timeout_s
        self._is_busy = is_busy
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_characters = 0

    def offer(self, version: str, queries: Sequence[AnsweredQuery], fitting: Fitting, caller: str) -> None:
        """Starts scoring a request with a shadow, or drops it if too many requests are being scored."""
        num_characters = sum(query.num_characters for query in queries)
        is_full = len(self._tasks) >= _MAX_REQUESTS or self._num_characters + num_characters > _MAX_CHARACTERS
        if is_full:
            self._sink.record(metrics.SHADOW_REQUESTS, 1, version, "dropped")
            return
        task = asyncio.get_running_loop().create_task(self._score(version, queries, fitting, caller))
        self._num_characters += num_characters
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._forget(task, num_characters))

    def stop(self) -> None:
        """Cancels all work."""
        for task in self._tasks:
            task.cancel()

    def _forget(self, task: "asyncio.Task[None]", num_characters: int) -> None:
        self._tasks.discard(task)
        self._num_characters -= num_characters

    async def _score(self, version: str, queries: Sequence[AnsweredQuery], fitting: Fitting, caller: str) -> None:
        outcome = "failed"
        try:
            if await self._is_busy():
                outcome = "dropped"
                return
            deadline = Deadline.after(self._timeout_s)
            for query, passages, answered in queries:
                ranked = await self._ranker.rank(version, query, passages, fitting, deadline, caller=caller)
                self._record(version, answered, ranked)
            outcome = "compared"
        except _DROPPED:
            outcome = "dropped"
        except Exception as error:
            code = error.code if isinstance(error, RerankError) else RerankError.code
            logger.warning("shadow failed version=%s code=%s type=%s", version, code, type(error).__name__)
        except asyncio.CancelledError:
            outcome = "dropped"
            raise
        finally:
            self._sink.record(metrics.SHADOW_REQUESTS, 1, version, outcome)

    def _record(self, version: str, answered: Ranked, ranked: Ranked) -> None:
        agreement = compare(answered.logits, ranked.logits)
        if agreement.kendall_tau is not None:
            # Ray's histograms accept no negative value.
            self._sink.record(metrics.SHADOW_KENDALL_TAU, max(0.0, agreement.kendall_tau), version)
        self._sink.record(metrics.SHADOW_TOP_OVERLAP, agreement.top_overlap, version)
        self._sink.record(metrics.SHADOW_MEAN_DIFFERENCE, agreement.mean_difference, version)
        self._sink.record(metrics.SHADOW_LARGEST_DIFFERENCE, agreement.largest_difference, version)
        self._sink.record(metrics.SHADOW_SECONDS, ranked.total_s, version)
