"""Scores the shards of one model: a bounded pool of threads tokenises them, then the scheduler scores them.

Each call enters the scheduler separately, so that it has its own error, cancellation and queue time. Replicas put a
`collector` in front of the scorer; `verify`, which loads the model in its own process, calls the scorer directly. The
module does not depend on Ray or HTTP.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from rerank_service.config import BatchingConfig, ModelConfig, default_min_batch_tokens
from rerank_service.engine import Engine, Truncate
from rerank_service.engine.text.windows import EncodedPassages, encode_passages, matches_of
from rerank_service.errors import PairTooLong, QueueFull, RequestTimedOut, RequestTooLarge, WaitTooLong
from rerank_service.messages import ReplicaReport, Shard, ShardScores, TokenMatch
from rerank_service.replica.scheduler import Scheduler, Watch
from rerank_service.replica.scheduler.admission import lateness
from rerank_service.replica.scheduler.fair_queue import TokensDue
from rerank_service.telemetry.metrics import MetricSink, NoMetrics, record_counts, record_gauges, record_start

__all__ = ["Collect", "ModelScorer", "StartTokenising", "Tokenised", "TokenisedFuture"]

logger = logging.getLogger(__name__)

_PROCESS = f"{socket.gethostname()}:{os.getpid()}"

_JOB_CHARACTERS = 65_536
"""Characters in one tokenising job, about 20 ms of work: small shards share a job, and a large shard has its own."""
_STUCK_S = 60.0
"""Time after which a thread counts as stuck: a shard takes milliseconds, and the largest allowed body takes a few
seconds."""

_KNOWN_PAIR = ("What is reranking?", ["Sorting passages by relevance to a query."])


class Tokenised(NamedTuple):
    """The pairs of a shard, and the time that tokenising took."""

    passages: EncodedPassages[Any]
    tokenise_s: float


TokenisedFuture: TypeAlias = "asyncio.Future[Tokenised]"

StartTokenising: TypeAlias = Callable[[Sequence[Shard]], list[TokenisedFuture]]
"""Starts tokenising several shards and immediately returns a future for each."""

Collect: TypeAlias = Callable[[StartTokenising, Shard], Awaitable[TokenisedFuture]]
"""Starts tokenising a shard together with other shards that arrive at the same time."""


class ModelScorer:
    """Scores shards of one model."""

    def __init__(
        self,
        model: ModelConfig,
        engine: Engine[Any],
        launch_thread: ThreadPoolExecutor,
        tokenisers: ThreadPoolExecutor,
        metrics: MetricSink | None = None,
        collect: Collect | None = None,
    ) -> None:
        """The caller shuts the threads down; `launch_thread` is the thread that loaded the engine (see `Scheduler`).

        Without `collect`, each shard is tokenised separately.
        """
        self._model = model
        self._engine = engine
        self._aligner = engine.aligner
        self._tokenisers = tokenisers
        self._metrics = metrics or NoMetrics()
        self._collect = collect
        (known_pair,) = engine.tokenise(*_KNOWN_PAIR, Truncate.END)
        self.scheduler: Scheduler[Any] = Scheduler(
            engine,
            engine.default_batch_tokens,
            model.batching.max_queued_tokens,
            launch_thread=launch_thread,
            known_pair=known_pair,
        )
        self.offered_tokens = 0
        """Tokens of all shards so far that this model should have had the capacity to score, including refused
        shards."""
        self._tokenising = Watch()
        self._reported_cache = engine.cache_counts
        self._num_calls = 0
        self._no_calls = asyncio.Event()
        self._set_knobs(model.batching)

    def reconfigure(self, knobs: dict[str, Any]) -> BatchingConfig:
        """Applies changed settings and returns all batching settings. Settings that `knobs` lacks come from the model's
        `batching`."""
        batching = BatchingConfig.model_validate(self._model.batching.model_dump() | knobs)
        self._set_knobs(batching)
        logger.info("reconfigured model=%s %s", self._model.id, batching)
        return batching

    def _set_knobs(self, batching: BatchingConfig) -> None:
        max_batch_tokens = batching.max_batch_tokens or self._engine.default_batch_tokens
        self.scheduler.max_batch_tokens = max_batch_tokens
        self.scheduler.min_batch_tokens = batching.min_batch_tokens or default_min_batch_tokens(max_batch_tokens)
        self.scheduler.admission.max_queued_tokens = batching.max_queued_tokens

    @property
    def num_stuck_tokenisers(self) -> int:
        """Number of threads that have worked on one shard for over a minute."""
        return self._tokenising.num_overdue(time.perf_counter())

    async def close(self) -> None:
        """Waits until every call is answered, then closes the scheduler. No new calls may arrive meanwhile."""
        while self._num_calls:
            self._no_calls.clear()
            await self._no_calls.wait()
        await self.scheduler.close()

    async def score(self, shard: Shard) -> ShardScores:
        """Scores a shard's pairs.

        Raises `RequestTooLarge`, `PairTooLong`, `QueueFull`, `WaitTooLong`, `NonFiniteLogit`, `EngineFailed`,
        `RequestTimedOut`.
        """
        max_queued_tokens = self.scheduler.admission.max_queued_tokens
        if shard.request_tokens > max_queued_tokens:
            raise RequestTooLarge(shard.request_tokens, max_queued_tokens)
        started_at, started = time.time(), time.perf_counter()
        self._num_calls += 1
        try:
            async with asyncio.timeout(shard.timeout_s):  # the ingress may die before it can cancel
                passages, tokenise_s = await self._tokenised(shard)
                num_tokens = passages.num_tokens
                offered_tokens = 0 if shard.is_counted else sum(num_tokens)
                self.offered_tokens += offered_tokens
                left_s = shard.timeout_s and max(0.0, shard.timeout_s - (time.perf_counter() - started))
                scored = await self.scheduler.submit(shard.request_id, passages.pairs, left_s, shard.caller)
                matches = await self._matches(shard, passages, scored.logits) if shard.explain else None
        except TimeoutError:
            raise RequestTimedOut(shard.timeout_s or 0) from None
        except (QueueFull, WaitTooLong):
            speed = self.scheduler.drain.tokens_per_s
            if left_s is not None and speed and lateness(TokensDue(left_s, sum(num_tokens)), (), 0, 0.0, speed):
                self.offered_tokens -= offered_tokens  # even an idle replica would be too slow
            raise
        finally:
            self._num_calls -= 1
            self._no_calls.set()
        return ShardScores(
            logits=passages.best(scored.logits),
            num_tokens=num_tokens,
            is_truncated=passages.is_truncated,
            is_unscored=passages.is_unscored,
            tokenise_s=tokenise_s,
            queue_s=scored.queue_s,
            forward_s=scored.forward_s,
            started_at=started_at,
            report=self._report(),
            numerics=self._engine.numerics.name,
            can_align=self._aligner is not None,
            matches=matches,
        )

    async def _matches(
        self, shard: Shard, passages: EncodedPassages[Any], logits: Sequence[float]
    ) -> tuple[tuple[TokenMatch, ...], ...] | None:
        """The token matches of each passage, or null if the model cannot report them."""
        if self._aligner is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(
            self._tokenisers, matches_of, self._aligner, shard.query, shard.passages, passages, logits
        )

    async def _tokenised(self, shard: Shard) -> Tokenised:
        try:
            if self._collect is None:
                (future,) = self.start_tokenising([shard])
            else:
                future = await self._collect(self.start_tokenising, shard)
            return await future
        except asyncio.CancelledError:
            # When a replica refuses a shard, the ingress cancels the other shards of the request. Those shards count as
            # load too, by their estimated tokens.
            if not shard.is_counted:
                most = shard.num_tokens if shard.fitting.windows else len(shard.passages) * self._engine.window_tokens
                self.offered_tokens += min(shard.num_tokens, most)
            raise

    def start_tokenising(self, shards: Sequence[Shard]) -> list[TokenisedFuture]:
        """Starts tokenising, and returns a future per shard. Small shards share a job of a tokenising thread; an error
        affects only its own shard."""
        loop = asyncio.get_running_loop()
        futures: list[TokenisedFuture] = []
        job: list[tuple[Shard, TokenisedFuture]] = []
        job_characters = 0
        for shard in shards:
            num_characters = len(shard.query) * len(shard.passages) + sum(map(len, shard.passages))
            if job and job_characters + num_characters > _JOB_CHARACTERS:
                self._tokenisers.submit(self._tokenise, job, loop)
                job, job_characters = [], 0
            futures.append(loop.create_future())
            job.append((shard, futures[-1]))
            job_characters += num_characters
        self._tokenisers.submit(self._tokenise, job, loop)
        return futures

    def _tokenise(self, job: Sequence[tuple[Shard, TokenisedFuture]], loop: asyncio.AbstractEventLoop) -> None:
        """Tokenises the shards of one job. Runs in a tokenising thread."""
        for shard, future in job:
            started, work = time.perf_counter(), self._tokenising.begin(_STUCK_S)
            result: Tokenised | Exception
            try:
                passages = encode_passages(self._engine, shard.query, shard.passages, shard.fitting)
                if shard.explain and self._aligner is not None:
                    passages = replace(passages, pairs=self._aligner.recording(passages.pairs))
                result = Tokenised(passages, time.perf_counter() - started)
            except PairTooLong as error:  # the error has the passage's index in the shard, not in the request
                result = error.at(shard.indices[error.index])
            except Exception as error:
                result = error
            finally:
                self._tokenising.end(work)
            loop.call_soon_threadsafe(_resolve, future, result)

    def renew_gauges(self) -> None:
        """Records the current values of all gauges, because Ray's exporter drops a gauge that is not renewed."""
        self._report(with_counters=False)
        record_start(self._metrics, self._model.id, self._engine.start_times)

    def _report(self, *, with_counters: bool = True) -> ReplicaReport:
        """State and counters since the previous report: each batch and each cache look-up is reported once. Without
        counters, the next report has them."""
        scheduler, engine = self.scheduler, self._engine
        batches: list[tuple[int, float]] = []
        busy_s = 0.0
        reported = self._reported_cache
        if with_counters:
            self._reported_cache = engine.cache_counts
            while scheduler.finished_batches:
                batch = scheduler.finished_batches.popleft()
                batches.append((batch.num_tokens, round(batch.fill, 3)))
                busy_s += batch.busy_s
        facts, tokens_per_s = engine.device_facts, scheduler.drain.tokens_per_s or 0.0
        report = ReplicaReport(
            replica=_PROCESS,
            batches=tuple(batches),
            busy_s=busy_s,
            cache_hits=self._reported_cache.hits - reported.hits,
            cache_misses=self._reported_cache.misses - reported.misses,
            waiting_tokens=scheduler.outstanding_tokens,
            tokens_per_s=tokens_per_s,
            memory_bytes=facts.memory_bytes,
            mfu=facts.peak_tokens_per_s and tokens_per_s / facts.peak_tokens_per_s,
            precision=engine.precision,
            window_tokens=engine.window_tokens,
            memory_limit_bytes=facts.memory_limit_bytes,
            unverified=engine.unverified,
            start=engine.start_times,
            numerics=engine.numerics,
        )
        if with_counters:
            record_counts(self._metrics, self._model.id, report)
        record_gauges(self._metrics, self._model.id, report)
        return report


def _resolve(future: TokenisedFuture, result: Tokenised | Exception) -> None:
    if future.done():  # cancelled by its caller
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
