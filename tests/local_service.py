"""The HTTP application with its models in this process: the real code path, but without Ray."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from rerank_service.config import ModelConfig, RerankConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.http.api import build_api
from rerank_service.messages import Shard, ShardScores
from rerank_service.replica.scorer import ModelScorer
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.ranker import Ranker
from rerank_service.routing.replica_table import ReplicaTable
from rerank_service.telemetry.ingress_metrics import IngressMetrics
from rerank_service.telemetry.tracing import Tracing

__all__ = ["LocalReplica", "api_over", "client_of", "local_api", "local_router"]


class LocalReplica:
    """Replaces a deployment handle's `score` with a replica's scorer in this process."""

    def __init__(self, model: ModelConfig, engine: Engine[Any] | None = None) -> None:
        """Without an `engine` that is already loaded, loads the model."""
        launch_thread = ThreadPoolExecutor(1)
        engine = engine or launch_thread.submit(load_engine, model).result()
        self._scorer = ModelScorer(model, engine, launch_thread, ThreadPoolExecutor(1))

    def remote(self, shard: Shard) -> "asyncio.Task[ShardScores]":
        return asyncio.ensure_future(self._scorer.score(shard))


def local_api(models: Sequence[ModelConfig], replicas: Mapping[str, Any], **settings: Any) -> FastAPI:
    """Returns an application with these models. `replicas` maps model ids to objects with a `remote` method."""
    config = RerankConfig.model_validate({"models": [model.model_dump() for model in models], **settings})
    return api_over(config, replicas)


def api_over(config: RerankConfig, replicas: Mapping[str, Any]) -> FastAPI:
    """Returns the application for a whole configuration."""
    metrics, tracing = IngressMetrics(), Tracing(config.tracing)
    router = ModelRouter(config, replicas, metrics, tracing)
    return build_api(config, router, Ranker(router, config), metrics, tracing)


def local_router(
    config: RerankConfig,
    replicas: Mapping[str, Any],
    tables: Mapping[str, ReplicaTable] | None = None,
    metrics: IngressMetrics | None = None,
) -> ModelRouter:
    """Returns a router without tracing."""
    return ModelRouter(config, replicas, metrics or IngressMetrics(), Tracing(config.tracing), tables)


@asynccontextmanager
async def client_of(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with api.router.lifespan_context(api), httpx.AsyncClient(transport=transport, base_url="http://rerank") as c:
        yield c
