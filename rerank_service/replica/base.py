"""Base class of single-model and pool replicas: scores or declines shards, and reports load and health."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from rerank_service.config import ModelConfig, ReplicaConfig
from rerank_service.engine import Engine
from rerank_service.errors import DeviceFailed, EngineFailed, UnknownModel
from rerank_service.messages import OFFERED, SPEED, START, WAITING, Declined, ReplicaLoad, Shard, ShardScores
from rerank_service.replica.collector import Collector
from rerank_service.replica.scorer import ModelScorer
from rerank_service.telemetry.logging import log_through_serve, serve_id
from rerank_service.telemetry.metrics import REPLICA_METRICS
from rerank_service.telemetry.ray_metrics import RayMetrics

__all__ = ["BaseReplica"]


class BaseReplica(ABC):
    """A Ray actor with one device and the models loaded on it. Subclasses decide which models are loaded, and when."""

    def __init__(self, settings: ReplicaConfig, models: Sequence[ModelConfig]) -> None:
        log_through_serve()
        self._name = serve_id()
        self._num_tokenisers = settings.tokeniser_threads
        self._models = {model.id: model for model in models}
        self._scorers: dict[str, ModelScorer] = {}
        """Scorers of the loaded models, by model id."""
        self._collectors = {model.id: Collector() for model in models}
        self._launch_thread = ThreadPoolExecutor(1, thread_name_prefix="launch")
        self._tokenisers = ThreadPoolExecutor(settings.tokeniser_threads, thread_name_prefix="tokenise")
        self._metrics = RayMetrics(REPLICA_METRICS)
        self._unloaded_tokens = 0  # offered to models that have been unloaded since
        self._load_s = 0.0  # loading time of the newest model
        self._lost_device: str | None = None  # the cause

    @abstractmethod
    async def _scorer(self, model_id: str) -> ModelScorer:
        """Returns the scorer of a model, loading the model first if needed."""

    async def score(self, shard: Shard) -> ShardScores | Declined:
        """Scores a shard, or declines it if the queue is much longer than the sender assumed.

        Raises the errors of `ModelScorer.score`, and `UnknownModel` for a model that this replica does not serve.
        """
        if shard.model not in self._models:
            raise UnknownModel(shard.model, list(self._models))
        if self._lost_device is not None:
            raise DeviceFailed(self._lost_device)
        load = self._load()
        if shard.decline_above is not None and load.waiting_tokens > shard.decline_above:
            return Declined(load)
        scorer = await self._scorer(shard.model)
        try:
            scores = await scorer.score(shard)
        except DeviceFailed as error:
            self._lost_device = error.cause
            raise
        return replace(scores, load=self._load())

    async def check_health(self) -> None:
        """Raises `EngineFailed` while the replica cannot score shards, or the subclass `DeviceFailed` if the device is
        lost.

        Serve replaces the replica after three failures in a row. All models share the device, so the whole replica is
        unhealthy if one model loses the device or can no longer score its known pair.
        """
        if self._lost_device is not None:
            raise DeviceFailed(self._lost_device)
        num_stuck = 0
        for scorer in self._scorers.values():
            scorer.scheduler.check()
            num_stuck += scorer.num_stuck_tokenisers
        if num_stuck >= self._num_tokenisers:
            raise EngineFailed("all tokenising threads are stuck")
        for scorer in self._scorers.values():
            scorer.renew_gauges()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Statistics for `autoscaling.TokenPolicy`. Serve calls this method at least every `metrics_interval_s`."""
        load = self._load()
        offered_tokens = self._unloaded_tokens
        for scorer in self._scorers.values():
            offered_tokens += scorer.offered_tokens
        return {OFFERED: offered_tokens, WAITING: load.waiting_tokens, SPEED: load.tokens_per_s, START: self._load_s}

    def _load(self) -> ReplicaLoad:
        """The load of all models together; the speed is the mean of the models' speeds."""
        waiting_tokens, speeds = 0, []
        for scorer in self._scorers.values():
            waiting_tokens += scorer.scheduler.outstanding_tokens
            if scorer.scheduler.drain.tokens_per_s:
                speeds.append(scorer.scheduler.drain.tokens_per_s)
        speed = sum(speeds) / len(speeds) if speeds else 0.0
        return ReplicaLoad(self._name, waiting_tokens, speed, time.monotonic())

    def _add_model(self, model_id: str, engine: Engine[Any]) -> ModelScorer:
        model, collect = self._models[model_id], self._collectors[model_id].collect
        scorer = ModelScorer(model, engine, self._launch_thread, self._tokenisers, self._metrics, collect)
        self._scorers[model_id] = scorer
        return scorer

    def _configure(self, model_id: str, knobs: dict[str, Any]) -> None:
        self._collectors[model_id].configure(self._scorers[model_id].reconfigure(knobs))
