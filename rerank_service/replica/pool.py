"""One Ray actor of a pool: several models on one device, each loaded when it is first asked for.

For many small models that are asked for now and then. Serve's `@serve.multiplexed` keeps those used last; which replica
a model is loaded on is `replica_choice.PoolRouter`'s business. Knows nothing of HTTP.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ray import serve

from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import ModelConfig, PoolConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.errors import CheckpointError, DeviceFailed, EngineFailed, UnknownModel
from rerank_service.messages import (
    OFFERED,
    SPEED,
    START,
    WAITING,
    Declined,
    ReplicaLoad,
    Shard,
    ShardScores,
    is_declined,
)
from rerank_service.replica.collector import Collector
from rerank_service.replica.scheduler import Watch
from rerank_service.replica.scorer import ModelScorer
from rerank_service.telemetry.logging import log_through_serve, serve_id
from rerank_service.telemetry.metrics import REPLICA_METRICS
from rerank_service.telemetry.ray_metrics import RayMetrics

__all__ = ["PoolReplica", "pool_replica_class"]

logger = logging.getLogger(__name__)

_LONGEST_LOAD_S = 900.0
"""The files are on this machine: a 4B model takes a minute, compiling and capturing a few more."""


class PoolReplica:
    """Scores shards of any model of its pool. Bound as what `pool_replica_class` makes of it."""

    def __init__(self, pool: PoolConfig, models: Sequence[ModelConfig]) -> None:
        log_through_serve()
        self._pool = pool
        self._name = serve_id()
        self._models = {model.id: _fetched_now(model) for model in models}
        self._knobs: dict[str, Any] = {}
        self._loaded: dict[str, ModelScorer] = {}
        self._collectors = {model.id: Collector() for model in models}
        self._launch_thread = ThreadPoolExecutor(1, thread_name_prefix="launch")
        self._tokenisers = ThreadPoolExecutor(pool.replica.tokeniser_threads, thread_name_prefix="tokenise")
        self._metrics = RayMetrics(REPLICA_METRICS)
        self._evicted_tokens = 0  # offered to models that have been unloaded
        self._load_s = 0.0
        self._loading = Watch()
        self._lost_device: str | None = None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies live knobs, by model id; Serve calls it at start and whenever `user_config` changes."""
        self._knobs = user_config
        for model_id in self._loaded:
            self._reconfigure(model_id)

    def _reconfigure(self, model_id: str) -> None:
        batching = self._loaded[model_id].reconfigure(self._knobs.get(model_id, {}))
        self._collectors[model_id].configure(batching)

    async def check_health(self) -> None:
        """Raises while nothing would score what is submitted: after three times in a row Serve replaces this replica.

        The models share a device: one that loses it, or cannot score a pair that it once could, ends all. A model that
        cannot be loaded does not.
        """
        if self._lost_device is not None:
            raise DeviceFailed(self._lost_device)
        for scorer in self._loaded.values():
            scorer.check(self._pool.replica.tokeniser_threads)
        if sum(one.num_stuck_tokenisers for one in self._loaded.values()) >= self._pool.replica.tokeniser_threads:
            raise EngineFailed("no tokenising thread returns")
        if self._loading.num_overdue(time.perf_counter()):
            raise EngineFailed("loading a model does not end")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling.TokenPolicy` decides by: of all models together, at the mean of their speeds."""
        schedulers = [scorer.scheduler for scorer in self._loaded.values()]
        speeds = [scheduler.drain.tokens_per_s for scheduler in schedulers if scheduler.drain.tokens_per_s]
        return {
            OFFERED: self._evicted_tokens + sum(scorer.offered_tokens for scorer in self._loaded.values()),
            WAITING: sum(scheduler.outstanding_tokens for scheduler in schedulers),
            SPEED: sum(speeds) / len(speeds) if speeds else 0.0,
            START: self._load_s,
        }

    async def score(self, shard: Shard) -> ShardScores | Declined:
        """What `ModelScorer.score` does and raises; `UnknownModel`; `EngineFailed` if the model cannot be loaded."""
        if shard.model not in self._models:
            raise UnknownModel(shard.model, list(self._models))
        if self._lost_device is not None:
            raise DeviceFailed(self._lost_device)
        if is_declined(shard, load := self._own_load()):
            return Declined(load)
        if shard.model not in self._loaded:  # in a task of its own: a caller that leaves does not take back the load
            await asyncio.shield(asyncio.ensure_future(self._place(shard.model)))
        place = await self._place(shard.model)  # without a pause before the call is counted, or it might be evicted
        try:
            scores = await place.scorer.score(shard)
        except DeviceFailed as error:
            self._lost_device = error.cause
            raise
        return replace(scores, load=self._own_load())

    def _own_load(self) -> ReplicaLoad:
        schedulers = [scorer.scheduler for scorer in self._loaded.values()]
        speeds = [scheduler.drain.tokens_per_s for scheduler in schedulers if scheduler.drain.tokens_per_s]
        waiting_tokens = sum(scheduler.outstanding_tokens for scheduler in schedulers)
        return ReplicaLoad(self._name, waiting_tokens, sum(speeds) / len(speeds) if speeds else 0.0, time.monotonic())

    async def _place(self, model_id: str) -> "_Place":
        raise NotImplementedError("bind what pool_replica_class makes")

    async def _load(self, model_id: str) -> "_Place":
        started = time.perf_counter()
        load = self._loading.begin(_LONGEST_LOAD_S)
        try:
            engine = await asyncio.to_thread(self._load_in_own_thread, self._models[model_id])
        except DeviceFailed as error:
            self._lost_device = error.cause
            raise
        except Exception as error:
            logger.exception("cannot load model=%s", model_id)
            raise EngineFailed(type(error).__name__) from None
        finally:
            self._loading.end(load)
        self._load_s = time.perf_counter() - started
        threads, collect = (self._launch_thread, self._tokenisers), self._collectors[model_id].collect
        scorer = ModelScorer(self._models[model_id], engine, *threads, self._metrics, collect)
        self._loaded[model_id] = scorer
        self._reconfigure(model_id)
        return _Place(scorer, asyncio.get_running_loop(), lambda: self._forget(model_id))

    def _load_in_own_thread(self, model: ModelConfig) -> Engine[Any]:
        """In a thread that ends with it, and so do its OpenMP threads: a second set of them would slow the first."""
        with ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
            return thread.submit(load_engine, model, self._pool.replica.num_cpus).result()

    def _forget(self, model_id: str) -> None:
        self._evicted_tokens += self._loaded.pop(model_id).offered_tokens
        logger.info("unloaded model=%s", model_id)


def _fetched_now(model: ModelConfig) -> ModelConfig:
    """The model with its files on this machine: they are loaded during requests, and must not be downloaded then.

    One that cannot be fetched is logged, and not to the others' harm: only its own requests fail.
    """
    if not model.checkpoint.is_fetched:
        return model
    try:
        resolve_checkpoint(model.checkpoint)
    except CheckpointError:
        logger.exception("cannot fetch model=%s", model.id)
    here = model.checkpoint.model_copy(update={"download": False})
    return model.model_copy(update={"checkpoint": here})


class _Place:
    """What Serve keeps and drops: a loaded model."""

    def __init__(self, scorer: ModelScorer, loop: asyncio.AbstractEventLoop, forget: Any) -> None:
        self.scorer = scorer
        self._loop = loop
        self._forget = forget
        self._is_closed = False

    def __del__(self) -> None:
        """Serve calls it in a thread, and waits: the next model is loaded when this one's calls are answered."""
        if not self._is_closed and self._loop.is_running() and not _runs_here(self._loop):
            self._is_closed = True
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()

    async def _close(self) -> None:
        self._forget()
        await self.scorer.close()


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def pool_replica_class(models_per_replica: int) -> type[PoolReplica]:
    """The class with so many places; Serve's decorator wants to know when the class is made."""

    class SizedPoolReplica(PoolReplica):
        @serve.multiplexed(max_num_models_per_replica=models_per_replica)
        async def _place(self, model_id: str) -> _Place:
            return await self._load(model_id)

    return SizedPoolReplica
