"""Feeds the device: one batch at a time from the fair queue, each time the device gets free.

A thin asyncio shell. The forward pass runs in one thread of its own; everything else runs on the loop that
submits. Knows the engine's contract, not which engine, and nothing of Ray or HTTP.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic

from rerank_service.engine.protocol import PairT
from rerank_service.errors import EngineFailed, NonFiniteLogit, QueueFull, RerankError
from rerank_service.scheduler.fair_queue import Drawn, FairQueue

__all__ = ["Scheduler", "ScoredPairs"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Logits of one submission, in its order, and where the time went."""

    logits: tuple[float, ...]
    queue_s: float
    forward_s: float


@dataclass(eq=False, slots=True)
class _Job(Generic[PairT]):
    request_id: str
    pairs: Sequence[PairT]
    done: "asyncio.Future[None]"
    logits: list[float]
    num_open: int
    submitted_at: float = field(default_factory=time.perf_counter)
    started_at: float | None = None


class Scheduler(Generic[PairT]):
    """Continuous batching over `score`, an engine's forward pass."""

    def __init__(
        self, score: Callable[[Sequence[PairT]], Sequence[float]], max_batch_tokens: int, max_queued_tokens: int
    ) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_queued_tokens = max_queued_tokens
        self._score = score
        self._queue: FairQueue[_Job[PairT]] = FairQueue()
        self._work = asyncio.Event()
        self._forward_thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._task: asyncio.Task[None] | None = None

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for the device."""
        return self._queue.num_tokens

    def check(self) -> None:
        """Raises `EngineFailed` if the loop has ended, so that nothing would score what is submitted."""
        if self._task is not None and self._task.done():
            raise EngineFailed("the scheduler's loop has ended")

    async def close(self) -> None:
        """Stops after the batch that is running; what still waits is never answered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._forward_thread.shutdown(wait=True)

    async def submit(self, request_id: str, pairs: Sequence[PairT]) -> ScoredPairs:
        """Waits for the logits of `pairs`. Cancelling it drops those that are still pending.

        Raises `QueueFull`, `NonFiniteLogit`, `EngineFailed` or what the engine raised for these pairs.
        """
        self.check()
        if self._task is None:  # here, not in __init__: it belongs to the loop that submits
            self._task = asyncio.get_running_loop().create_task(self._run())
        lengths = [pair.num_tokens for pair in pairs]
        queued = self._queue.num_tokens
        if queued and queued + sum(lengths) > self.max_queued_tokens:
            raise QueueFull(queued, self.max_queued_tokens)
        job = _Job(request_id, pairs, asyncio.get_running_loop().create_future(), [math.nan] * len(pairs), len(pairs))
        if pairs:
            self._queue.add(request_id, job, lengths)
            self._work.set()
            try:
                await job.done
            finally:
                self._queue.discard(request_id, job)
        return _scored(job)

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            batch = self._queue.take(self.max_batch_tokens)
            if batch:
                await self._forward(batch)
            else:
                self._work.clear()

    async def _forward(self, batch: Sequence[Drawn[_Job[PairT]]]) -> None:
        now = time.perf_counter()
        for drawn in batch:
            drawn.job.started_at = drawn.job.started_at or now
        try:
            logits = await self._in_forward_thread(batch)
        except Exception as error:
            await self._forward_apart(batch, error)
        else:
            _deliver(batch, logits)

    async def _forward_apart(self, batch: Sequence[Drawn[_Job[PairT]]], error: Exception) -> None:
        """After a failed batch: each job's pairs alone, so that only the jobs at fault fail."""
        by_job: dict[_Job[PairT], list[Drawn[_Job[PairT]]]] = {}
        for drawn in batch:
            by_job.setdefault(drawn.job, []).append(drawn)
        if len(by_job) == 1:
            self._fail(batch[0].job, error)
            return
        for job, part in by_job.items():
            if job.done.done():
                continue
            try:
                _deliver(part, await self._in_forward_thread(part))
            except Exception as own_error:
                self._fail(job, own_error)

    async def _in_forward_thread(self, batch: Sequence[Drawn[_Job[PairT]]]) -> Sequence[float]:
        pairs = [drawn.job.pairs[drawn.position] for drawn in batch]
        logits = await asyncio.get_running_loop().run_in_executor(self._forward_thread, self._score, pairs)
        if len(logits) != len(pairs):
            raise RuntimeError(f"the engine gave {len(logits)} logits for {len(pairs)} pairs")
        return logits

    def _fail(self, job: _Job[PairT], error: Exception) -> None:
        self._queue.discard(job.request_id, job)
        if job.done.done():
            return
        if not isinstance(error, RerankError):
            logger.error("forward pass failed num_pairs=%d", len(job.pairs), exc_info=error)
            error = EngineFailed(type(error).__name__)
        job.done.set_exception(error)


def _deliver(batch: Sequence[Drawn[_Job[PairT]]], logits: Sequence[float]) -> None:
    for drawn, logit in zip(batch, logits, strict=True):
        job = drawn.job
        job.logits[drawn.position] = logit
        job.num_open -= 1
        if job.num_open == 0 and not job.done.done():
            job.done.set_result(None)


def _scored(job: _Job[PairT]) -> ScoredPairs:
    now = time.perf_counter()
    num_bad = sum(not math.isfinite(logit) for logit in job.logits)
    if num_bad:
        raise NonFiniteLogit(num_bad)
    started_at = job.started_at or now
    return ScoredPairs(tuple(job.logits), started_at - job.submitted_at, now - started_at)
