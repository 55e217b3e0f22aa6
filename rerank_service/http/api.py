"""The HTTP API: a FastAPI application over a `Ranker`. It puts the parts together and knows nothing of Ray.

Built anew in each ingress replica by `build_api`, so that routes close over live objects and the OpenAPI
document states the limits in force.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from rerank_service import __version__
from rerank_service.config import ModelConfig, RerankConfig
from rerank_service.http.auth import ApiKeys
from rerank_service.http.endpoint import Answering
from rerank_service.http.envelope import add_error_handlers
from rerank_service.http.openapi import add_openapi
from rerank_service.http.playground.routes import playground_routes
from rerank_service.http.ranking_routes import ranking_routes
from rerank_service.http.rate_limits import RateLimits
from rerank_service.http.readiness import Readiness
from rerank_service.http.service_routes import service_routes
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.ranker import Ranker
from rerank_service.telemetry.observation import Observer

__all__ = ["build_api"]


def build_api(config: RerankConfig, router: ModelRouter, ranker: Ranker) -> FastAPI:
    """The application, ready to serve; raises `ConfigError` if the keys cannot be read."""
    keys = ApiKeys(config.auth)
    observer = Observer(config.logs, router.metrics, router.tracing)
    rate_limits = RateLimits(config.rate_limits)
    probed = {model.id: _of_same_replicas(config, model) for model in config.probed_models}
    readiness = Readiness(ranker, router, probed)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        readiness.start()
        yield
        readiness.stop()
        await rate_limits.close()
        await asyncio.to_thread(router.tracing.close)

    api = FastAPIOffline(  # /docs without a third-party host: clusters are often cut off
        title="Rerank service",
        version=__version__,
        description="Scores passages against a query with a cross-encoder, most relevant first. "
        "Speaks the NVIDIA NIM reranking API, and those of other vendors.",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    answering = Answering(config, keys, rate_limits, router, ranker, observer)
    api.include_router(ranking_routes(answering, config.dialects))
    api.include_router(service_routes(config, keys, readiness, router.metrics))
    if config.service.playground:
        api.router.routes.extend(playground_routes())
    add_error_handlers(api)
    add_openapi(api, config, keys_are_required=keys.are_required)
    return api


def _of_same_replicas(config: RerankConfig, model: ModelConfig) -> list[str]:
    return [one.id for one in config.models if one is model or (one.pool is not None and one.pool == model.pool)]
