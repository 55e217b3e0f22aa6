"""Feeds the device: one batch at a time from the fair queue, each time the device gets free.

A thin asyncio shell. One thread launches forward passes and one waits for their logits; everything else runs on
the loop that submits. Knows the engine's contract, not which engine, and nothing of Ray or HTTP.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from rerank_service.engine.protocol import BatchScorer, PairT, PendingLogits
from rerank_service.errors import EngineFailed, NonFiniteLogit, RerankError
from rerank_service.scheduler.admission import Admission
from rerank_service.scheduler.deadlines import Demand
from rerank_service.scheduler.fair_queue import Drawn, FairQueue
from rerank_service.scheduler.pace import DrainRate, batch_budget, may_launch

__all__ = ["FinishedBatch", "Scheduler", "ScoredPairs"]

logger = logging.getLogger(__name__)

_REMEMBERED_BATCHES = 256
"""If nobody asks for them."""


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Logits of one submission, in its order, and where the time went."""

    logits: tuple[float, ...]
    queue_s: float
    forward_s: float


class FinishedBatch(NamedTuple):
    """One forward pass, for the metrics."""

    num_tokens: int
    fill: float
    """Share of its budget that is; 1 for a pair longer than the budget."""
    busy_s: float
    """Time the device had it, less what it had the batch before for."""


@dataclass(eq=False, slots=True)
class _Job(Generic[PairT]):
    request_id: str
    pairs: Sequence[PairT]
    done: "asyncio.Future[None]"
    logits: list[float]
    num_open: int
    submitted_at: float = field(default_factory=time.perf_counter)
    started_at: float | None = None


_Batch: TypeAlias = Sequence[Drawn[_Job[PairT]]]


ResultT = TypeVar("ResultT")


class Scheduler(Generic[PairT]):
    """Continuous batching over an engine.

    Where the device takes a second batch before the first is done, it gets one only once the queue fills it:
    a pair waits for company while the device is busy, and a small request behind as few tokens as can be. For the
    same reason a batch is a small share of what waits, between `min_batch_tokens` and `max_batch_tokens`: full
    batches under load, short ones where one large request is all there is and the next may be small.
    """

    def __init__(
        self,
        engine: BatchScorer[PairT],
        max_batch_tokens: int,
        max_queued_tokens: int,
        min_batch_tokens: int | None = None,
        launch_thread: ThreadPoolExecutor | None = None,
    ) -> None:
        """`launch_thread`, of one worker, launches the forward passes; it stays the caller's to shut down. Give the
        one the engine was loaded in: each thread that computes has OpenMP threads of its own, and with two sets of
        them on the same CPUs none waits actively any more, which costs a quarter of the speed.
        """
        self.max_batch_tokens = max_batch_tokens
        self.min_batch_tokens = min_batch_tokens
        """Null: every batch is filled up to `max_batch_tokens`."""
        self._engine = engine
        self._queue: FairQueue[_Job[PairT]] = FairQueue()
        self._drain = DrainRate()
        self._admission = Admission(self._queue, self._drain, max_queued_tokens)
        self._num_in_flight = 0
        self._tokens_in_flight = 0
        self.arrived_tokens = 0
        """Of all submissions that were taken, so far."""
        self.finished_batches: deque[FinishedBatch] = deque(maxlen=_REMEMBERED_BATCHES)
        """Whoever reports them takes them out."""
        self._has_changed = asyncio.Event()
        self._launch_thread = launch_thread or ThreadPoolExecutor(1, thread_name_prefix="launch")
        self._owns_launch_thread = launch_thread is None
        self._wait_thread = ThreadPoolExecutor(1, thread_name_prefix="wait")
        self._task: asyncio.Task[None] | None = None
        self._deliveries: set[asyncio.Task[None]] = set()

    @property
    def max_queued_tokens(self) -> int:
        """Tokens above which more are refused."""
        return self._admission.max_queued_tokens

    @max_queued_tokens.setter
    def max_queued_tokens(self, num_tokens: int) -> None:
        self._admission.max_queued_tokens = num_tokens

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for the device."""
        return self._queue.num_tokens

    @property
    def outstanding_tokens(self) -> int:
        """Tokens that wait for the device or are on it."""
        return self._queue.num_tokens + self._tokens_in_flight

    @property
    def tokens_per_s(self) -> float | None:
        """What the device has scored a second of late, while it had work; null before the first batch."""
        return self._drain.tokens_per_s

    def check(self) -> None:
        """Raises `EngineFailed` if the loop has ended, so that nothing would score what is submitted."""
        if self._task is not None and self._task.done():
            raise EngineFailed("the scheduler's loop has ended")

    async def close(self) -> None:
        """Stops after the batch that is running; what still waits is never answered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, *self._deliveries, return_exceptions=True)
        if self._owns_launch_thread:
            self._launch_thread.shutdown(wait=True)
        self._wait_thread.shutdown(wait=True)

    async def submit(self, request_id: str, pairs: Sequence[PairT], timeout_s: float | None = None) -> ScoredPairs:
        """Waits for the logits of `pairs`. Cancelling it drops those that are still pending.

        `timeout_s`, after which the caller will cancel it, is a promise: pairs that could be done in time only at the
        price of others' are refused at once. Raises `QueueFull`, `WaitTooLong`, `NonFiniteLogit`, `EngineFailed` or
        what the engine raised for these pairs.
        """
        self.check()
        if self._task is None:  # here, not in __init__: it belongs to the loop that submits
            self._task = asyncio.get_running_loop().create_task(self._run())
        lengths = [pair.num_tokens for pair in pairs]
        deadline_s = math.inf if timeout_s is None else time.perf_counter() + timeout_s
        newcomer = Demand(deadline_s, sum(lengths))
        refusal = self._admission.refusal(newcomer, self._tokens_in_flight, self._budget_tokens, time.perf_counter())
        if refusal is not None:
            raise refusal
        job = _Job(request_id, pairs, asyncio.get_running_loop().create_future(), [math.nan] * len(pairs), len(pairs))
        if pairs:
            self.arrived_tokens += sum(lengths)
            self._queue.add(request_id, job, lengths, deadline_s)
            self._has_changed.set()
            try:
                await job.done
            finally:
                self._queue.discard(request_id, job)
        return _scored(job)

    async def _run(self) -> None:
        while True:
            while not self._may_launch():
                self._has_changed.clear()
                await self._has_changed.wait()
            self._num_in_flight += 1
            budget = self._budget_tokens
            batch = self._queue.take(budget, self._free_at_s, self._drain.tokens_per_s)
            self._tokens_in_flight += _num_tokens(batch)
            pending = await self._launch(batch)
            if pending is None or pending.is_ready:
                await self._deliver(batch, budget, pending)
            else:
                delivery = asyncio.get_running_loop().create_task(self._deliver(batch, budget, pending))
                self._deliveries.add(delivery)
                delivery.add_done_callback(self._deliveries.discard)

    @property
    def _budget_tokens(self) -> int:
        largest = min(self.max_batch_tokens, self._engine.memory_tokens or self.max_batch_tokens)
        return batch_budget(self._queue.num_tokens, self.min_batch_tokens, largest)

    @property
    def _free_at_s(self) -> float:
        """When the device will be done with what it has."""
        return time.perf_counter() + self._tokens_in_flight / (self._drain.tokens_per_s or math.inf)

    def _may_launch(self) -> bool:
        queued, max_in_flight = self._queue.num_tokens, self._engine.max_in_flight
        return may_launch(self._num_in_flight, max_in_flight, queued, self._budget_tokens)

    async def _launch(self, batch: _Batch[PairT]) -> PendingLogits | None:
        """Null if the pass failed and its jobs have been scored apart."""
        now = time.perf_counter()
        for drawn in batch:
            drawn.job.started_at = drawn.job.started_at or now
        try:
            return await self._in_thread(self._launch_thread, self._engine.launch, _pairs(batch))
        except Exception as error:
            await self._score_apart(batch, error)
            return None

    async def _deliver(self, batch: _Batch[PairT], budget: int, pending: PendingLogits | None) -> None:
        try:
            if pending is not None:
                logits = await self._logits(pending)
                self._finish(batch, budget)
                _hand_out(batch, logits)
        except Exception as error:
            await self._score_apart(batch, error)
        finally:
            self._num_in_flight -= 1
            self._tokens_in_flight -= _num_tokens(batch)
            self._has_changed.set()

    def _finish(self, batch: _Batch[PairT], budget: int) -> None:
        """Counts a batch that is done."""
        num_tokens, now = _num_tokens(batch), time.perf_counter()
        busy_s = self._drain.add(num_tokens, min(drawn.job.started_at or now for drawn in batch), now)
        self.finished_batches.append(FinishedBatch(num_tokens, min(1.0, num_tokens / budget), busy_s))

    async def _logits(self, pending: PendingLogits) -> list[float]:
        return pending.wait() if pending.is_ready else await self._in_thread(self._wait_thread, pending.wait)

    async def _score_apart(self, batch: _Batch[PairT], error: Exception) -> None:
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
                pending = await self._in_thread(self._launch_thread, self._engine.launch, _pairs(part))
                _hand_out(part, await self._logits(pending))
            except Exception as own_error:
                self._fail(job, own_error)

    async def _in_thread(self, thread: ThreadPoolExecutor, call: Callable[..., ResultT], *arguments: Any) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(thread, call, *arguments)

    def _fail(self, job: _Job[PairT], error: Exception) -> None:
        self._queue.discard(job.request_id, job)
        if job.done.done():
            return
        if not isinstance(error, RerankError):
            logger.error("forward pass failed num_pairs=%d", len(job.pairs), exc_info=error)
            error = EngineFailed(type(error).__name__)
        job.done.set_exception(error)


def _num_tokens(batch: _Batch[Any]) -> int:
    return sum(drawn.num_tokens for drawn in batch)


def _pairs(batch: _Batch[PairT]) -> list[PairT]:
    return [drawn.job.pairs[drawn.position] for drawn in batch]


def _hand_out(batch: _Batch[PairT], logits: Sequence[float]) -> None:
    if len(logits) != len(batch):
        raise RuntimeError(f"the engine gave {len(logits)} logits for {len(batch)} pairs")
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
