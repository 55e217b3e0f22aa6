"""The scheduler's loop: takes a batch from the fair queue whenever the device is free, and delivers the batch's logits.

One thread launches forward passes and another waits for their logits. Everything else runs in the callers' event loop.
The module depends only on the engine's contract, not on Ray or HTTP.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

from rerank_service.engine.protocol import BatchScorer, PairT, PendingLogits
from rerank_service.errors import DeviceFailed, EngineFailed, RerankError
from rerank_service.messages import checked_logits
from rerank_service.replica.scheduler.admission import Admission, DrainRate, batch_budget, may_launch
from rerank_service.replica.scheduler.fair_queue import Drawn, FairQueue, TokensDue

__all__ = ["FinishedBatch", "Scheduler", "ScoredPairs", "Watch"]

logger = logging.getLogger(__name__)

_REMEMBERED_BATCHES = 256
"""Number of batches kept for the metrics; older batches are dropped if nothing collects them."""
_SUSPICIOUS_FAILURES = 3
"""Number of failed requests, without a success in between, after which the known pair is tried. Fewer failures may come
from bad requests."""
_KNOWN_TOLERANCE = 0.05
"""Allowed deviation of the known pair's logit: relative, or absolute if the logit is between -1 and 1. Rounding errors
are far smaller."""
_HANG_FACTOR = 20.0
"""A pass counts as hanging after this multiple of its expected time. A throttled or shared device is slow but works."""
_SHORTEST_HANG_S = 30.0
_FIRST_PASS_S = 300.0
"""Time limit for passes before the speed is known: compiling and capturing graphs may take minutes."""
_LONGEST_STEP_S = 10.0
"""Maximum time that one health check adds to a call's running time; replicas are checked about every second."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Logits of one submission, in the order of its pairs, and the time of each stage."""

    logits: tuple[float, ...]
    queue_s: float
    forward_s: float


class FinishedBatch(NamedTuple):
    """One forward pass, for the metrics."""

    num_tokens: int
    fill: float
    """Used share of the token budget; 1 for a pair longer than the budget."""
    busy_s: float
    """Time the device spent on this batch, excluding the time it spent on the previous batch."""


@dataclass(eq=False, slots=True)
class _Work:
    limit_s: float
    seen_s: float | None = None  # time since the first check that found it running


class Watch:
    """Notices calls that never return. `begin` and `end` may be called from any thread.

    The time between two checks counts only up to a limit: after a process was stopped (SIGSTOP, a suspended machine),
    the process's clock has advanced by minutes in which no call could return.
    """

    def __init__(self) -> None:
        self._out: dict[_Work, None] = {}
        self._checked_at_s: float | None = None

    def begin(self, limit_s: float) -> _Work:
        """Registers a call that counts as lost after `limit_s`."""
        work = _Work(limit_s)
        self._out[work] = None
        return work

    def end(self, work: _Work) -> None:
        """Records that a call has returned."""
        self._out.pop(work, None)

    def num_overdue(self, now_s: float) -> int:
        """Number of calls that are past their limit, as of this check."""
        step_s = 0.0 if self._checked_at_s is None else min(max(0.0, now_s - self._checked_at_s), _LONGEST_STEP_S)
        self._checked_at_s = now_s
        num_overdue = 0
        for work in list(self._out):  # a copy: other threads add and remove calls
            work.seen_s = 0.0 if work.seen_s is None else work.seen_s + step_s
            num_overdue += work.seen_s > work.limit_s
        return num_overdue


@dataclass(eq=False, slots=True)
class _Job(Generic[PairT]):
    """One call of `submit`."""

    request_id: str
    pairs: Sequence[PairT]
    done: "asyncio.Future[None]"
    logits: list[float]
    num_open: int
    started_at: float = math.inf  # launch of the first batch with one of its pairs


@dataclass(eq=False, slots=True)
class _Pass(Generic[PairT]):
    """A forward pass: one batch on the device."""

    drawn: Sequence[Drawn[_Job[PairT]]]
    budget_tokens: int
    pairs: list[PairT] = field(default_factory=list)
    num_tokens: int = 0
    started_at: float = math.inf  # earliest start of the jobs


class Scheduler(Generic[PairT]):
    """Continuous batching over an engine.

    If a device can take a second batch before the first is done, the second batch is launched only if it is full. Pairs
    are therefore batched while the device is busy, and a small request waits behind as few tokens as possible. For the
    same reason a batch is a small share of the queue, between `min_batch_tokens` and `max_batch_tokens`: full under
    load, and short when only one large request is queued, in case a small request follows.
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
        """`known_pair` is scored at the start, and again after several requests in a row have failed. If this pair
        fails too, the engine is at fault, not the requests.

        `launch_thread`, with one worker, launches the forward passes; the caller shuts it down. Pass the thread that
        loaded the engine: each computing thread has its own set of OpenMP threads. If two sets share the same CPUs,
        their threads stop spinning while they wait, which costs a quarter of the speed.
        """
        self.max_batch_tokens = max_batch_tokens
        self.min_batch_tokens = min_batch_tokens
        """Smallest token budget of a batch; null: the budget is always `max_batch_tokens`."""
        self.queue: FairQueue[_Job[PairT]] = FairQueue()
        self.drain = DrainRate()
        self.admission = Admission(self.queue, self.drain, max_queued_tokens)
        self.finished_batches: deque[FinishedBatch] = deque(maxlen=_REMEMBERED_BATCHES)
        """Batches not yet reported; the reporter removes them."""
        self._engine = engine
        self._num_in_flight = 0
        self._tokens_in_flight = 0
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
        self._known_pair_error: str | None = None
        self._known_pair_trial: asyncio.Task[None] | None = None
        self._failed_requests: set[str] = set()  # since the last success
        self._lost_device: str | None = None  # the cause

    @property
    def outstanding_tokens(self) -> int:
        """Tokens in the queue or on the device."""
        return self.queue.num_tokens + self._tokens_in_flight

    def check(self) -> None:
        """Raises `EngineFailed` while pairs cannot be scored, or the subclass `DeviceFailed` if the device is lost.

        The replica's health check calls this method about every second. See `Watch` for the time between two checks.
        """
        if self._lost_device is not None:
            raise DeviceFailed(self._lost_device)
        if self._task is not None and self._task.done():
            raise EngineFailed("the scheduler's loop has ended")
        if self._watch.num_overdue(time.perf_counter()):
            raise EngineFailed("a forward pass has not returned in time")
        if self._known_pair_error is not None:
            self._try_known_pair()  # the engine may have recovered
            raise EngineFailed(f"a known pair fails: {self._known_pair_error}")

    async def close(self) -> None:
        """Stops after the running batch. Pairs still in the queue are never scored."""
        tasks = [task for task in (self._task, self._known_pair_trial) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._deliveries, return_exceptions=True)
        if self._owns_launch_thread:
            self._launch_thread.shutdown(wait=True)
        self._wait_thread.shutdown(wait=True)

    async def submit(
        self, request_id: str, pairs: Sequence[PairT], timeout_s: float | None = None, caller: str = ""
    ) -> ScoredPairs:
        """Scores `pairs`. Cancelling the call drops the pairs that are still queued.

        Callers share the device equally, and the requests of one caller share that caller's part equally. `timeout_s`
        is a promise: the pairs are refused at once if scoring them in this time would make other requests late.

        Raises `QueueFull`, `WaitTooLong`, `NonFiniteLogit`, `EngineFailed` or the engine's own error for these pairs.
        """
        self.check()
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        if self._task is None:  # not in __init__: the task needs the callers' event loop
            self._task = loop.create_task(self._run())
            self._task.add_done_callback(self._fail_open_jobs)
        lengths = list(map(attrgetter("num_tokens"), pairs))
        newcomer = TokensDue(math.inf if timeout_s is None else now + timeout_s, sum(lengths))
        refusal = self.admission.refusal(newcomer, self._tokens_in_flight, self._budget_tokens, now, caller)
        if refusal is not None:
            raise refusal
        if not pairs:
            return ScoredPairs((), 0.0, 0.0)
        job = _Job(request_id, pairs, loop.create_future(), [math.nan] * len(pairs), len(pairs))
        self.queue.add(request_id, job, lengths, newcomer.deadline_s, caller)
        self._open.add(job)
        self._has_changed.set()
        try:
            await job.done
        finally:
            self._open.discard(job)
            if job.num_open:
                self.queue.discard(request_id, job)
        logits = tuple(checked_logits(job.logits, len(pairs)))
        return ScoredPairs(logits, job.started_at - now, time.perf_counter() - job.started_at)

    async def _run(self) -> None:
        if self._known_pair is not None:
            await self._score_known_pair(self._known_pair)
        while True:
            budget = self._budget_tokens
            if not may_launch(self._num_in_flight, self._engine.max_in_flight, self.queue.num_tokens, budget):
                self._has_changed.clear()
                await self._has_changed.wait()
                continue
            batch = self._next_pass(budget)
            pending: PendingLogits | Exception
            try:
                pending = await self._in_thread(self._launch_thread, self._engine.launch, batch.pairs)
                is_ready = pending.is_ready
            except Exception as error:
                pending, is_ready = error, True
            if is_ready:
                await self._finish(batch, pending, is_ready)
            else:  # in a task: another batch may be launched meanwhile
                delivery = asyncio.get_running_loop().create_task(self._finish(batch, pending, is_ready))
                self._deliveries.add(delivery)
                delivery.add_done_callback(self._deliveries.discard)

    @property
    def _budget_tokens(self) -> int:
        largest = min(self.max_batch_tokens, self._engine.memory_tokens or self.max_batch_tokens)
        return batch_budget(self.queue.num_tokens, self.queue.num_pairs, self.min_batch_tokens, largest)

    def _next_pass(self, budget_tokens: int) -> _Pass[PairT]:
        now, speed = time.perf_counter(), self.drain.tokens_per_s
        free_at = now + self._tokens_in_flight / speed if speed else now  # end of the passes in flight
        batch = _Pass(self.queue.take(budget_tokens, free_at, speed), budget_tokens)
        for job, position, num_tokens in batch.drawn:
            if job.started_at > now:
                job.started_at = now
            if job.started_at < batch.started_at:
                batch.started_at = job.started_at
            batch.pairs.append(job.pairs[position])
            batch.num_tokens += num_tokens
        self._num_in_flight += 1
        self._tokens_in_flight += batch.num_tokens
        return batch

    async def _finish(self, batch: _Pass[PairT], pending: PendingLogits | Exception, is_ready: bool) -> None:
        """Waits for the logits of a pass and delivers them; `pending` is an error if the launch failed."""
        try:
            if isinstance(pending, Exception):
                raise pending
            logits = pending.wait() if is_ready else await self._in_thread(self._wait_thread, pending.wait)
            busy_s = self.drain.add(batch.num_tokens, batch.started_at, time.perf_counter())
            fill = min(1.0, batch.num_tokens / batch.budget_tokens)
            self.finished_batches.append(FinishedBatch(batch.num_tokens, fill, busy_s))
            self._hand_out(batch.drawn, logits)
        except Exception as error:
            await self._score_apart(batch.drawn, error)
        self._num_in_flight -= 1
        self._tokens_in_flight -= batch.num_tokens
        self._has_changed.set()

    def _hand_out(self, drawn: Sequence[Drawn[_Job[PairT]]], logits: Sequence[float]) -> None:
        if len(logits) != len(drawn):
            raise RuntimeError(f"the engine returned {len(logits)} logits for {len(drawn)} pairs")
        if any(map(math.isfinite, logits)):  # the engine works
            self._failed_requests.clear()
            self._known_pair_error = None
        for (job, position, _), logit in zip(drawn, logits, strict=True):
            job.logits[position] = logit
            job.num_open -= 1
            if not math.isfinite(logit):
                self._count_failure(job)
            if job.num_open == 0 and not job.done.done():
                job.done.set_result(None)

    async def _score_apart(self, drawn: Sequence[Drawn[_Job[PairT]]], error: Exception) -> None:
        """After a batch has failed, scores each job's pairs separately, so that only the jobs at fault fail."""
        by_job: dict[_Job[PairT], list[Drawn[_Job[PairT]]]] = {}
        for pair in drawn:
            by_job.setdefault(pair.job, []).append(pair)
        if len(by_job) == 1 or isinstance(error, DeviceFailed):
            self._fail(drawn[0].job, error)
            return
        for job, part in by_job.items():
            if job.done.done():
                continue
            try:
                self._hand_out(part, await self._score([job.pairs[pair.position] for pair in part]))
            except Exception as own_error:
                self._fail(job, own_error)

    async def _score(self, pairs: Sequence[PairT]) -> list[float]:
        """Runs one forward pass outside the queue."""
        pending = await self._in_thread(self._launch_thread, self._engine.launch, pairs)
        return await self._in_thread(self._wait_thread, pending.wait)

    def _fail(self, job: _Job[PairT], error: Exception) -> None:
        if isinstance(error, DeviceFailed):
            self._lose_device(error)
            return
        self.queue.discard(job.request_id, job)
        if job.done.done():
            return
        if not isinstance(error, RerankError):
            self._count_failure(job)
            logger.error("forward pass failed num_pairs=%d", len(job.pairs), exc_info=error)
            error = EngineFailed(type(error).__name__)
        job.done.set_exception(error)

    def _count_failure(self, job: _Job[PairT]) -> None:
        self._failed_requests.add(job.request_id)
        if len(self._failed_requests) >= _SUSPICIOUS_FAILURES:
            self._try_known_pair()

    def _try_known_pair(self) -> None:
        """Scores the known pair in a task, because a health check must not wait for a slow device."""
        if self._known_pair is not None and (self._known_pair_trial is None or self._known_pair_trial.done()):
            self._known_pair_trial = asyncio.get_running_loop().create_task(self._score_known_pair(self._known_pair))

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
        is_right = abs(logit - expected) <= _KNOWN_TOLERANCE * max(1.0, abs(expected))  # false for NaN
        self._known_pair_error = None if is_right else f"its logit is {logit}, not {expected}"
        if is_right:
            self._known_logit = expected
            self._failed_requests.clear()

    def _lose_device(self, error: DeviceFailed) -> None:
        """Fails every open job, so that another replica scores it. No pass is launched afterwards."""
        if self._lost_device is None:
            logger.error("device failed num_calls=%d", len(self._open), exc_info=error)
            self._lost_device = error.cause
        self._fail_open_jobs()

    def _fail_open_jobs(self, _: object = None) -> None:
        cause = self._lost_device
        for job in tuple(self._open):
            self.queue.discard(job.request_id, job)
            if not job.done.done():
                job.done.set_exception(DeviceFailed(cause) if cause else EngineFailed("the scheduler's loop has ended"))

    async def _in_thread(self, thread: ThreadPoolExecutor, call: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Runs a call in a thread, with a time limit that depends on the tokens on the device."""
        speed = self.drain.tokens_per_s
        limit_s = max(_SHORTEST_HANG_S, _HANG_FACTOR * self._tokens_in_flight / speed) if speed else _FIRST_PASS_S
        work = self._watch.begin(limit_s)
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, call, *arguments)
        finally:
            self._watch.end(work)
