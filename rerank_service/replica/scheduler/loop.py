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
from rerank_service.errors import DeviceFailed, EngineFailed, RerankError
from rerank_service.messages import checked_logits
from rerank_service.replica.scheduler.admission import Admission
from rerank_service.replica.scheduler.deadlines import Demand
from rerank_service.replica.scheduler.fair_queue import Drawn, FairQueue
from rerank_service.replica.scheduler.pace import DrainRate, batch_budget, may_launch
from rerank_service.replica.scheduler.watch import Watch

__all__ = ["FinishedBatch", "Scheduler", "ScoredPairs"]

logger = logging.getLogger(__name__)

_REMEMBERED_BATCHES = 256
"""If nobody asks for them."""

_SUSPICIOUS_FAILURES = 3
"""Requests that failed with no success between before a known pair is tried: one or two may be poison, and retried."""
_KNOWN_TOLERANCE = 0.05
"""Share of its logit, at least absolute, by which the known pair may differ: far above any precision's noise."""

_HANG_FACTOR = 20.0
"""Times its expected time that a pass may take: a throttled device, another process on it, is slow and works."""
_SHORTEST_HANG_S = 30.0
_FIRST_PASS_S = 300.0
"""For passes before the speed is known: compiling and capturing may take minutes."""


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
        known_pair: PairT | None = None,
    ) -> None:
        """`known_pair` is scored once at the start, and again when several requests in a row have failed: only if it
        fails too is the engine at fault, not the requests.

        `launch_thread`, of one worker, launches the forward passes; it stays the caller's to shut down. Give the
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
        self.finished_batches: deque[FinishedBatch] = deque(maxlen=_REMEMBERED_BATCHES)
        """Whoever reports them takes them out."""
        self._has_changed = asyncio.Event()
        self._launch_thread = launch_thread or ThreadPoolExecutor(1, thread_name_prefix="launch")
        self._owns_launch_thread = launch_thread is None
        self._wait_thread = ThreadPoolExecutor(1, thread_name_prefix="wait")
        self._task: asyncio.Task[None] | None = None
        self._deliveries: set[asyncio.Task[None]] = set()
        self._open: set[_Job[PairT]] = set()
        self._watch = Watch()
        self._known_pair = known_pair
        self._known_logit: float | None = None
        self._failed_requests: set[str] = set()  # since the last success
        self._lost_device: str | None = None  # the cause
        self._known_pair_error: str | None = None
        self._trial: asyncio.Task[None] | None = None

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
        """Raises `EngineFailed` while nothing would score what is submitted: `DeviceFailed` if the device is lost.

        A replica's health check calls it, every second or so; time in which nobody called does not count against a
        pass that is out.
        """
        if self._lost_device is not None:
            raise DeviceFailed(self._lost_device)
        if self._task is not None and self._task.done():
            raise EngineFailed("the scheduler's loop has ended")
        if self._watch.num_overdue(time.perf_counter()):
            raise EngineFailed("a forward pass does not return")
        if self._known_pair_error is not None:
            self._try_known_pair()  # it may work again
            raise EngineFailed(f"a known pair fails: {self._known_pair_error}")

    async def close(self) -> None:
        """Stops after the batch that is running; what still waits is never answered."""
        tasks = [task for task in (self._task, self._trial) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._deliveries, return_exceptions=True)
        if self._owns_launch_thread:
            self._launch_thread.shutdown(wait=True)
        self._wait_thread.shutdown(wait=True)

    async def submit(
        self, request_id: str, pairs: Sequence[PairT], timeout_s: float | None = None, caller: str = ""
    ) -> ScoredPairs:
        """Waits for the logits of `pairs`. Cancelling it drops those that are still pending.

        The device is shared equally between callers, and a caller's share between its requests.

        `timeout_s`, after which the caller will cancel it, is a promise: pairs that could be done in time only at the
        price of others' are refused at once. Raises `QueueFull`, `WaitTooLong`, `NonFiniteLogit`, `EngineFailed` or
        what the engine raised for these pairs.
        """
        self.check()
        if self._task is None:  # here, not in __init__: it belongs to the loop that submits
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._fail_what_is_open)
        lengths = [pair.num_tokens for pair in pairs]
        deadline_s = math.inf if timeout_s is None else time.perf_counter() + timeout_s
        newcomer = Demand(deadline_s, sum(lengths))
        refusal = self._admission.refusal(
            newcomer, self._tokens_in_flight, self._budget_tokens, time.perf_counter(), caller
        )
        if refusal is not None:
            raise refusal
        job = _Job(request_id, pairs, asyncio.get_running_loop().create_future(), [math.nan] * len(pairs), len(pairs))
        if pairs:
            self._queue.add(request_id, job, lengths, deadline_s, caller)
            self._open.add(job)
            self._has_changed.set()
            try:
                await job.done
            finally:
                self._open.discard(job)
                self._queue.discard(request_id, job)
        return _scored(job)

    async def _run(self) -> None:
        if self._known_pair is not None:
            await self._score_known_pair(self._known_pair)
        while True:
            while not self._may_launch():
                self._has_changed.clear()
                await self._has_changed.wait()
            self._num_in_flight += 1
            budget = self._budget_tokens
            batch = self._queue.take(budget, self._free_at_s, self._drain.tokens_per_s)
            self._tokens_in_flight += _num_tokens(batch)
            pending = await self._launch(batch)
            if pending is None or _is_ready(pending):
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
                self._hand_out(batch, logits)
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
        if len(by_job) == 1 or isinstance(error, DeviceFailed):
            self._fail(batch[0].job, error)
            return
        for job, part in by_job.items():
            if job.done.done():
                continue
            try:
                self._hand_out(part, await self._score(_pairs(part)))
            except Exception as own_error:
                self._fail(job, own_error)

    def _hand_out(self, batch: _Batch[PairT], logits: Sequence[float]) -> None:
        if len(logits) != len(batch):
            raise RuntimeError(f"the engine gave {len(logits)} logits for {len(batch)} pairs")
        if any(map(math.isfinite, logits)):
            self._failed_requests.clear()
            self._known_pair_error = None
        for drawn, logit in zip(batch, logits, strict=True):
            job = drawn.job
            job.logits[drawn.position] = logit
            job.num_open -= 1
            if not math.isfinite(logit):
                self._count_failure(job)
            if job.num_open == 0 and not job.done.done():
                job.done.set_result(None)

    async def _score(self, pairs: Sequence[PairT]) -> list[float]:
        pending = await self._in_thread(self._launch_thread, self._engine.launch, pairs)
        return await self._logits(pending)

    def _count_failure(self, job: _Job[PairT]) -> None:
        self._failed_requests.add(job.request_id)
        if len(self._failed_requests) >= _SUSPICIOUS_FAILURES:
            self._try_known_pair()

    def _try_known_pair(self) -> None:
        """In a task of its own: a health check that waited for the device would fail for slowness."""
        if self._known_pair is not None and (self._trial is None or self._trial.done()):
            self._trial = asyncio.get_running_loop().create_task(self._score_known_pair(self._known_pair))

    async def _score_known_pair(self, pair: PairT) -> None:
        try:
            (logit,) = await self._score([pair])
        except DeviceFailed as error:
            self._lose_device(error)
            return
        except Exception as error:
            self._known_pair_error = type(error).__name__
            logger.exception("the known pair failed")
            return
        expected = logit if self._known_logit is None else self._known_logit
        is_right = abs(logit - expected) <= _KNOWN_TOLERANCE * max(1.0, abs(expected))  # not so for NaN
        self._known_pair_error = None if is_right else f"its logit is {logit}, not {expected}"
        if is_right:
            self._known_logit = expected
            self._failed_requests.clear()

    def _lose_device(self, error: DeviceFailed) -> None:
        """Nothing is launched any more; whatever is here is scored elsewhere."""
        if self._lost_device is None:
            logger.error("device failed num_calls=%d", len(self._open), exc_info=error)
            self._lost_device = error.cause
        self._fail_what_is_open()

    def _fail_what_is_open(self, _: object = None) -> None:
        for job in tuple(self._open):
            self._queue.discard(job.request_id, job)
            if not job.done.done():
                lost = self._lost_device
                error = EngineFailed("the scheduler's loop has ended") if lost is None else DeviceFailed(lost)
                job.done.set_exception(error)

    async def _in_thread(self, thread: ThreadPoolExecutor, call: Callable[..., ResultT], *arguments: Any) -> ResultT:
        work = self._watch.begin(self._hangs_after_s)
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, call, *arguments)
        finally:
            self._watch.end(work)

    @property
    def _hangs_after_s(self) -> float:
        """For a pass that ends once all that is on the device is done."""
        if not self._drain.tokens_per_s:
            return _FIRST_PASS_S
        return max(_SHORTEST_HANG_S, _HANG_FACTOR * self._tokens_in_flight / self._drain.tokens_per_s)

    def _fail(self, job: _Job[PairT], error: Exception) -> None:
        if isinstance(error, DeviceFailed):
            self._lose_device(error)
            return
        self._queue.discard(job.request_id, job)
        if job.done.done():
            return
        if not isinstance(error, RerankError):
            self._count_failure(job)
            logger.error("forward pass failed num_pairs=%d", len(job.pairs), exc_info=error)
            error = EngineFailed(type(error).__name__)
        job.done.set_exception(error)


def _num_tokens(batch: _Batch[Any]) -> int:
    return sum(drawn.num_tokens for drawn in batch)


def _pairs(batch: _Batch[PairT]) -> list[PairT]:
    return [drawn.job.pairs[drawn.position] for drawn in batch]


def _is_ready(pending: PendingLogits) -> bool:
    """An error counts as ready: the delivery raises it again, where it is dealt with."""
    try:
        return pending.is_ready
    except Exception:
        return True


def _scored(job: _Job[PairT]) -> ScoredPairs:
    now = time.perf_counter()
    logits = checked_logits(job.logits, len(job.pairs))
    started_at = job.started_at or now
    return ScoredPairs(tuple(logits), started_at - job.submitted_at, now - started_at)
