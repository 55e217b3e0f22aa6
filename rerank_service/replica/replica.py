"""One Ray actor: a model on a device. Bound as a Serve deployment by `app`; knows nothing of HTTP."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from rerank_service.config import ModelConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.errors import UnknownModel
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
from rerank_service.replica.scorer import ModelScorer
from rerank_service.telemetry.logging import log_through_serve, serve_id
from rerank_service.telemetry.metrics import REPLICA_METRICS
from rerank_service.telemetry.ray_metrics import RayMetrics

__all__ = ["Replica"]


class Replica:
    """Scores shards of one model."""

    def __init__(self, model: ModelConfig) -> None:
        log_through_serve()
        started = time.perf_counter()
        self._model = model
        self._name = serve_id()
        launch_thread = ThreadPoolExecutor(1, thread_name_prefix="launch")
        engine = launch_thread.submit(self.load).result()
        tokenisers = ThreadPoolExecutor(model.replica.tokeniser_threads, thread_name_prefix="tokenise")
        metrics = RayMetrics(REPLICA_METRICS)
        self._collector = Collector()
        self._scorer = ModelScorer(model, engine, launch_thread, tokenisers, metrics, self._collector.collect)
        self._start_s = time.perf_counter() - started

    def load(self) -> Engine[Any]:
        """The engine, warm; runs in the thread that will launch its forward passes."""
        return load_engine(self._model, self._model.replica.num_cpus)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies live knobs; Serve calls it at start and whenever `user_config` changes, without a restart."""
        self._collector.configure(self._scorer.reconfigure(user_config))

    async def check_health(self) -> None:
        """Raises while nothing would be scored; Serve replaces the replica after three failures in a row."""
        self._scorer.check(self._model.replica.tokeniser_threads)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling.TokenPolicy` decides by; Serve calls it every `metrics_interval_s` or oftener."""
        scheduler = self._scorer.scheduler
        return {
            OFFERED: self._scorer.offered_tokens,
            WAITING: scheduler.outstanding_tokens,
            SPEED: scheduler.drain.tokens_per_s or 0.0,
            START: self._start_s,
        }

    async def score(self, shard: Shard) -> ShardScores | Declined:
        """What `ModelScorer.score` does and raises; `UnknownModel` if the shard is another model's.

        Declines a shard that would wait much longer than its sender assumed.
        """
        if shard.model != self._model.id:
            raise UnknownModel(shard.model, [self._model.id])
        if is_declined(shard, load := self._own_load()):
            return Declined(load)
        return replace(await self._scorer.score(shard), load=self._own_load())

    def _own_load(self) -> ReplicaLoad:
        scheduler = self._scorer.scheduler
        return ReplicaLoad(
            self._name, scheduler.outstanding_tokens, scheduler.drain.tokens_per_s or 0.0, time.monotonic()
        )
