"""One model on a device: shards are tokenised in a bounded pool of threads, then scored by the scheduler.

Every call enters the scheduler by itself, so that its error, its cancellation and its wait are its own. Used by
replicas behind `collector`, and as it is wherever a model runs in the caller's process. Knows nothing of Ray or HTTP.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

from rerank_service.config import BatchingConfig, ModelConfig, default_min_batch_tokens
from rerank_service.engine import CacheCounts, Engine, Truncate
from rerank_service.engine.text.windows import EncodedPassages, encode_passages
from rerank_service.errors import EngineFailed, PairTooLong, QueueFull, RequestTimedOut, RequestTooLarge, WaitTooLong
from rerank_service.messages import ReplicaReport, Shard, ShardScores
from rerank_service.replica.scheduler import Scheduler, Watch
from rerank_service.replica.scheduler.admission import lateness
from rerank_service.replica.scheduler.fair_queue import TokensDue
from rerank_service.telemetry.metrics import MetricSink, NoMetrics, record_counts, record_gauges

__all__ = ["Collect", "ModelScorer", "StartTokenising", "Tokenised"]

logger = logging.getLogger(__name__)

_PROCESS = f"{socket.gethostname()}:{os.getpid()}"

_JOB_CHARACTERS = 65_536
"""Text of one tokenising job, about 20 ms: small calls share a job, a large one has its own."""


_KNOWN_PAIR = ("What is reranking?", ["Sorting passages by relevance to a query."])
_STUCK_S = 60.0
"""A tokenising job takes milliseconds; the largest body allowed, a few seconds."""


class Tokenised(NamedTuple):
    """A shard's pairs."""

    passages: EncodedPassages[Any]
    tokenise_s: float
    """Time it took."""


StartTokenising: TypeAlias = Callable[[Sequence[Shard]], "list[asyncio.Future[Tokenised]]"]
"""Starts tokenising shards together; returns at once, with a future for each."""

Collect: TypeAlias = Callable[[StartTokenising, Shard], Awaitable["asyncio.Future[Tokenised]"]]
"""Starts tokenising a shard with whatever others arrive at the same time."""


async def _alone(start: StartTokenising, shard: Shard) -> "asyncio.Future[Tokenised]":
    return start([shard])[0]


class ModelScorer:
    """Scores shards of one model."""

    def __init__(
        self,
        model: ModelConfig,
        engine: Engine[Any],
        launch_thread: ThreadPoolExecutor,
        tokenisers: ThreadPoolExecutor,
        metrics: MetricSink | None = None,
        collect: Collect = _alone,
    ) -> None:
        """The threads stay the caller's; `launch_thread` is the one the engine was loaded in (see `Scheduler`).

        Without `collect`, each shard is tokenised by itself.
        """
        self._model = model
        self._collect = collect
        self._engine = engine
        self._metrics = metrics or NoMetrics()
        self._reported = engine.cache_counts
        self._tokenisers = tokenisers
        (known_pair,) = engine.tokenise(*_KNOWN_PAIR, Truncate.END)
        self.scheduler: Scheduler[Any] = Scheduler(
            engine,
            engine.default_batch_tokens,
            model.batching.max_queued_tokens,
            launch_thread=launch_thread,
            known_pair=known_pair,
        )
        self._tokenising = Watch()
        self.offered_tokens = 0
        """Tokens of all shards so far that this model should have had the capacity for, refused ones included."""
        self._num_calls = 0
        self._no_calls = asyncio.Event()
        self._set_knobs(model.batching)

    def reconfigure(self, knobs: dict[str, Any]) -> BatchingConfig:
        """Applies live knobs; one that is not given has the value of the model's own `batching`. Gives all of them."""
        batching = BatchingConfig.model_validate(self._model.batching.model_dump() | knobs)
        self._set_knobs(batching)
        logger.info("reconfigured model=%s %s", self._model.id, batching)
        return batching

    def _set_knobs(self, batching: BatchingConfig) -> None:
        max_batch_tokens = batching.max_batch_tokens or self._engine.default_batch_tokens
        self.scheduler.max_batch_tokens = max_batch_tokens
        self.scheduler.min_batch_tokens = batching.min_batch_tokens or default_min_batch_tokens(max_batch_tokens)
        self.scheduler.admission.max_queued_tokens = batching.max_queued_tokens

    def check(self, num_tokenisers: int) -> None:
        """Raises `EngineFailed` while nothing would score what is sent: `DeviceFailed` if the device is lost."""
        self.scheduler.check()
        if self.num_stuck_tokenisers >= num_tokenisers:
            raise EngineFailed("no tokenising thread returns")

    @property
    def num_stuck_tokenisers(self) -> int:
        """Threads that have been at one job for far too long."""
        return self._tokenising.num_overdue(time.perf_counter())

    async def score(self, shard: Shard) -> ShardScores:
        """Logits of a shard's pairs.

        Raises `RequestTooLarge`, `PairTooLong`, `QueueFull`, `WaitTooLong`, `NonFiniteLogit`, `EngineFailed`,
        `RequestTimedOut`.
        """
        self._num_calls += 1
        try:
            return await self._score(shard)
        finally:
            self._num_calls -= 1
            self._no_calls.set()

    async def close(self) -> None:
        """Ends once every call is answered; there must be no further ones."""
        while self._num_calls:
            self._no_calls.clear()
            await self._no_calls.wait()
        await self.scheduler.close()

    async def _score(self, shard: Shard) -> ShardScores:
        if shard.request_tokens > self.scheduler.admission.max_queued_tokens:
            raise RequestTooLarge(shard.request_tokens, self.scheduler.admission.max_queued_tokens)
        started_at, started = time.time(), time.perf_counter()
        try:
            async with asyncio.timeout(shard.timeout_s):  # the ingress may die before it can cancel
                tokenised = await self._tokenised(shard)
                left_s = shard.timeout_s and max(0.0, shard.timeout_s - (time.perf_counter() - started))
                pairs = tokenised.passages.pairs
                scored = await self.scheduler.submit(shard.request_id, pairs, left_s, shard.caller)
        except TimeoutError:
            raise RequestTimedOut(shard.timeout_s or 0) from None
        except (QueueFull, WaitTooLong):
            num_tokens, speed = sum(tokenised.passages.num_tokens), self.scheduler.drain.tokens_per_s
            if left_s is not None and speed and lateness(TokensDue(left_s, num_tokens), (), 0, 0.0, speed):
                self._offer(shard, -num_tokens)  # an idle replica would have refused it too: more of them do not help
            raise
        return ShardScores(
            logits=tokenised.passages.best(scored.logits),
            num_tokens=tokenised.passages.num_tokens,
            is_truncated=tokenised.passages.is_truncated,
            is_unscored=tokenised.passages.is_unscored,
            tokenise_s=tokenised.tokenise_s,
            queue_s=scored.queue_s,
            forward_s=scored.forward_s,
            started_at=started_at,
            report=self._report(),
        )

    async def _tokenised(self, shard: Shard) -> Tokenised:
        """Counts the shard as offered.

        One whose caller leaves before that counts by estimate: when a replica refuses a shard, the ingress cancels
        the request's other shards, and they are as much a part of the load.
        """
        try:
            tokenised = await (await self._collect(self.start_tokenising, shard))
        except asyncio.CancelledError:
            most = shard.num_tokens if shard.fitting.windows else len(shard.passages) * self._engine.window_tokens
            self._offer(shard, min(shard.num_tokens, most))
            raise
        self._offer(shard, sum(tokenised.passages.num_tokens))
        return tokenised

    def _offer(self, shard: Shard, num_tokens: int) -> None:
        if not shard.is_counted:
            self.offered_tokens += num_tokens

    def _report(self) -> ReplicaReport:
        """Each batch and each look-up in the cache is reported once, in whichever answer comes next."""
        finished = [self.scheduler.finished_batches.popleft() for _ in range(len(self.scheduler.finished_batches))]
        cache = self._new_cache_counts()
        facts, tokens_per_s = self._engine.device_facts, self.scheduler.drain.tokens_per_s or 0.0
        report = ReplicaReport(
            replica=_PROCESS,
            batches=tuple((batch.num_tokens, round(batch.fill, 3)) for batch in finished),
            busy_s=sum(batch.busy_s for batch in finished),
            cache_hits=cache.hits,
            cache_misses=cache.misses,
            waiting_tokens=self.scheduler.outstanding_tokens,
            tokens_per_s=tokens_per_s,
            memory_bytes=facts.memory_bytes,
            mfu=facts.utilisation(tokens_per_s),
            precision=self._engine.precision,
        )
        record_counts(self._metrics, self._model.id, report)
        record_gauges(self._metrics, self._model.id, report)
        return report

    def _new_cache_counts(self) -> CacheCounts:
        before, self._reported = self._reported, self._engine.cache_counts
        return CacheCounts(self._reported.hits - before.hits, self._reported.misses - before.misses)

    def start_tokenising(self, shards: Sequence[Shard]) -> "list[asyncio.Future[Tokenised]]":
        """A future for each shard. Small ones share a job of a tokenising thread; an error stays with its shard."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Tokenised]] = []
        for group in _group_by_size(shards):
            job = loop.run_in_executor(self._tokenisers, self._tokenise, group)
            futures.extend(asyncio.ensure_future(_nth(job, index)) for index in range(len(group)))
        return futures

    def _tokenise(self, shards: Sequence[Shard]) -> list[Tokenised | Exception]:
        """Runs in a tokenising thread. An error is a result, so that it stays with its shard."""
        results: list[Tokenised | Exception] = []
        for shard in shards:
            started, work = time.perf_counter(), self._tokenising.begin(_STUCK_S)
            try:
                passages = encode_passages(self._engine, shard.query, shard.passages, shard.fitting)
            except PairTooLong as error:
                index = shard.indices[error.index]
                results.append(PairTooLong(index, error.num_tokens, error.max_tokens))
            except Exception as error:
                results.append(error)
            else:
                results.append(Tokenised(passages, time.perf_counter() - started))
            finally:
                self._tokenising.end(work)
        return results


async def _nth(job: "asyncio.Future[list[Tokenised | Exception]]", index: int) -> Tokenised:
    result = (await asyncio.shield(job))[index]
    if isinstance(result, Exception):
        raise result
    return result


def _group_by_size(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Consecutive shards, cut where a group's text would pass `_JOB_CHARACTERS`."""
    groups: list[list[Shard]] = []
    filled = 0
    for shard in shards:
        size = sum(len(shard.query) + len(passage) for passage in shard.passages)
        if not groups or filled + size > _JOB_CHARACTERS:
            groups.append([])
            filled = 0
        groups[-1].append(shard)
        filled += size
    return groups
