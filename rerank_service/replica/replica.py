"""A Ray actor that serves one model. `app` binds the actor as a Serve deployment. The module does not depend on
HTTP."""

import time
from typing import Any

from rerank_service.config import ModelConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.replica.agreement import agree_in_deployment
from rerank_service.replica.base import BaseReplica
from rerank_service.replica.scorer import ModelScorer

__all__ = ["Replica"]


class Replica(BaseReplica):
    """Scores shards of one model, which it loads at start."""

    def __init__(self, model: ModelConfig) -> None:
        started = time.perf_counter()
        super().__init__(model.replica, [model])
        self._model = model
        self._add_model(model.id, self._launch_thread.submit(self.load).result())
        self._load_s = time.perf_counter() - started

    def load(self) -> Engine[Any]:
        """Loads and warms up the engine. Runs in the thread that will launch the engine's forward passes."""
        replica = self._model.replica
        agree = agree_in_deployment(self._model)
        return load_engine(self._model, replica.num_cpus, num_gpus=replica.num_gpus, agree=agree)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Applies changed settings without a restart. Serve calls this method at start and when `user_config`
        changes."""
        self._configure(self._model.id, user_config)

    async def _scorer(self, model_id: str) -> ModelScorer:
        return self._scorers[model_id]
