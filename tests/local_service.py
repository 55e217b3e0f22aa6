"""The HTTP application with its models in this process: no Ray, otherwise the real path."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI

from rerank_service.config import ModelConfig, RerankConfig
from rerank_service.engine import load_engine
from rerank_service.ingress.api import build_api
from rerank_service.model_router import ModelRouter
from rerank_service.ranker import Ranker
from rerank_service.scorer import ModelScorer
from rerank_service.shards import Shard, ShardScores

__all__ = ["LocalReplica", "local_api"]


class LocalReplica:
    """Stands where a deployment handle's `score` stands, over the scorer of a replica."""

    def __init__(self, model: ModelConfig) -> None:
        launch_thread = ThreadPoolExecutor(1)
        engine = launch_thread.submit(load_engine, model).result()
        self._scorer = ModelScorer(model, engine, launch_thread, ThreadPoolExecutor(1))

    def remote(self, shard: Shard) -> "asyncio.Task[ShardScores]":
        return asyncio.ensure_future(self._scorer.score(shard))


def local_api(models: Sequence[ModelConfig], replicas: Mapping[str, Any], **settings: Any) -> FastAPI:
    """The application; `replicas` by model id have a `remote` method."""
    config = RerankConfig.model_validate({"models": [model.model_dump() for model in models], **settings})
    router = ModelRouter(config, replicas)
    return build_api(config, router, Ranker(router, config))
