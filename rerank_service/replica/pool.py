"""A replica of a pool: a Ray actor with several models on one device, each loaded when the first request needs it.

A pool suits many small models that are used occasionally. Serve's `@serve.multiplexed` keeps the most recently used
models loaded, and `request_router.PoolRouter` decides which replica serves which model. The module does not depend on
HTTP.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve

from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import ModelConfig, PoolConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.errors import CheckpointError, DeviceFailed, EngineFailed
from rerank_service.replica.agreement import agree_in_deployment
from rerank_service.replica.base import BaseReplica
from rerank_service.replica.scheduler import Watch
from rerank_service.replica.scorer import ModelScorer

__all__ = ["LoadedModel", "PoolReplica", "pool_replica_class"]

logger = logging.getLogger(__name__)

_LONGEST_LOAD_S = 900.0
"""Time limit for loading a model. The files are already local: loading a 4B model takes a minute, and compiling and
capturing graphs take a few more minutes."""


class LoadedModel:
    """A loaded model in Serve's cache. Serve unloads the least recently used model by calling its `__del__`."""

    def __init__(self, pool: "PoolReplica", model_id: str, scorer: ModelScorer) -> None:
        self.scorer = scorer
        self._pool = pool
        self._model_id = model_id
        self._event_loop = asyncio.get_running_loop()
        self._is_unloaded = False

    def __del__(self) -> None:
        """Waits until the calls of this model are answered; Serve loads the next model afterwards.

        Serve calls this method in a separate thread. If the method runs in the event loop's thread, the replica is
        stopping: nothing needs to be unloaded, and waiting would block the calls.
        """
        if self._is_unloaded or not self._event_loop.is_running():
            return
        try:
            if asyncio.get_running_loop() is self._event_loop:
                return
        except RuntimeError:  # no event loop in this thread
            pass
        self._is_unloaded = True
        unloading = self._pool.unload(self._model_id, self.scorer)
        asyncio.run_coroutine_threadsafe(unloading, self._event_loop).result()


class PoolReplica(BaseReplica):
    """Scores shards of any model of its pool. `pool_replica_class` makes the subclass that is deployed."""

    def __init__(self, pool: PoolConfig, models: Sequence[ModelConfig]) -> None:
        super().__init__(pool.replica, [_fetched(model) for model in models])
        self._resources = pool.replica
        self._knobs: dict[str, Any] = {}
        self._loading = Watch()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies changed settings, by model id. Serve calls this method at start and when `user_config` changes."""
        self._knobs = user_config
        for model_id in self._scorers:
            self._configure(model_id, self._knobs.get(model_id, {}))

    async def check_health(self) -> None:
        """Raises `EngineFailed` if loading a model takes too long, and the errors of `BaseReplica.check_health`. A
        model that cannot be loaded does not make a replica unhealthy."""
        await super().check_health()
        if self._loading.num_overdue(time.perf_counter()):
            raise EngineFailed("loading a model takes too long")

    async def loaded(self, model_id: str) -> LoadedModel:
        """Returns a model from Serve's cache, which calls `load` if the model is not loaded."""
        raise NotImplementedError("deploy a class made by pool_replica_class")

    async def load(self, model_id: str) -> LoadedModel:
        """Loads a model. Raises `EngineFailed` if loading fails, and `DeviceFailed` if the device is lost."""
        started = time.perf_counter()
        work = self._loading.begin(_LONGEST_LOAD_S)
        try:
            engine = await asyncio.to_thread(self._load_in_own_thread, self._models[model_id])
        except DeviceFailed as error:
            self._lost_device = error.cause
            raise
        except Exception as error:
            logger.exception("cannot load model=%s", model_id)
            raise EngineFailed(type(error).__name__) from None
        finally:
            self._loading.end(work)
        self._load_s = time.perf_counter() - started
        scorer = self._add_model(model_id, engine)
        self._configure(model_id, self._knobs.get(model_id, {}))
        return LoadedModel(self, model_id, scorer)

    async def unload(self, model_id: str, scorer: ModelScorer) -> None:
        """Removes a loaded model, and waits until the model's calls are answered."""
        self._unloaded_tokens += scorer.offered_tokens
        del self._scorers[model_id]
        logger.info("unloaded model=%s", model_id)
        await scorer.close()

    async def _scorer(self, model_id: str) -> ModelScorer:
        if model_id not in self._scorers:  # in a separate task: a caller that disconnects must not cancel the load
            await asyncio.shield(asyncio.ensure_future(self.loaded(model_id)))
        # The model is in the cache now, so `loaded` returns without a pause. During a pause, the model could be
        # unloaded before its scorer counts this call.
        return (await self.loaded(model_id)).scorer

    def _load_in_own_thread(self, model: ModelConfig) -> Engine[Any]:
        """Loads a model in a separate thread. The thread and its OpenMP threads end afterwards, because a second set of
        OpenMP threads would slow down the first."""
        cpus, gpus = self._resources.num_cpus, self._resources.num_gpus
        if gpus:  # compiled layers refer to themselves, so an unloaded model would keep its memory for a while
            self._run_alone(_collect_garbage)
        with ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
            agree = agree_in_deployment(model)
            load = thread.submit(load_engine, model, cpus, num_gpus=gpus, run_alone=self._run_alone, agree=agree)
            return load.result()

    def _run_alone(self, call: Callable[[], None]) -> None:
        """Runs a step of a load in the thread that launches the batches of all models: CUDA does not allow launches
        during the capture of a graph, and another model's batch would be counted as memory of this model."""
        self._launch_thread.submit(call).result()


def _collect_garbage() -> None:
    gc.collect()


def _fetched(model: ModelConfig) -> ModelConfig:
    """Fetches a model's files at start, because the model is loaded later, during a request, and a request must not
    download anything.

    A failed fetch is logged, and only requests for that model fail.
    """
    if not model.checkpoint.is_fetched:
        return model
    try:
        resolve_checkpoint(model.checkpoint)
    except CheckpointError:
        logger.exception("cannot fetch model=%s", model.id)
    local = model.checkpoint.model_copy(update={"download": False})
    return model.model_copy(update={"checkpoint": local})


def pool_replica_class(models_per_replica: int) -> type[PoolReplica]:
    """Makes a class that keeps up to `models_per_replica` models loaded. Serve's decorator needs this number when the
    class is defined."""

    class SizedPoolReplica(PoolReplica):
        @serve.multiplexed(max_num_models_per_replica=models_per_replica)
        async def loaded(self, model_id: str) -> LoadedModel:
            return await self.load(model_id)

    return SizedPoolReplica
