"""The HTTP API: a FastAPI application over a `Ranker`, without Ray.

Each ingress replica builds its own application, so that routes use that replica's objects and the OpenAPI document
states the configured limits.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from rerank_service import __version__
from rerank_service.config import ModelConfig, RerankConfig
from rerank_service.http.access import ApiKeys, RateLimits
from rerank_service.http.dialects import NIM, routes_of
from rerank_service.http.endpoint import Detour, DirectRankings, RankingEndpoint, ranking_routes
from rerank_service.http.envelope import add_error_handlers
from rerank_service.http.model_routes import model_routes
from rerank_service.http.openapi import add_openapi
from rerank_service.http.paths import SecondLook
from rerank_service.http.playground.routes import playground_routes
from rerank_service.http.readiness import Readiness
from rerank_service.http.service_routes import service_routes
from rerank_service.http.versions import FollowShares, Versions
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.ranker import Ranker
from rerank_service.telemetry.ingress_metrics import IngressMetrics
from rerank_service.telemetry.observation import Observer
from rerank_service.telemetry.tracing import Tracing

__all__ = ["build_api"]


def build_api(
    config: RerankConfig,
    router: ModelRouter,
    ranker: Ranker,
    metrics: IngressMetrics,
    tracing: Tracing,
    follow_shares: FollowShares | None = None,
) -> FastAPI:
    """Builds the application. `follow_shares` keeps the shares of versions up to date. Raises `ConfigError` if the API
    keys cannot be read."""
    keys = ApiKeys(config.auth)
    observer = Observer(config.logs, metrics, tracing)
    rate_limits = RateLimits(config.rate_limits)
    probed = {model.id: _models_on_same_replicas(config, model) for model in config.probed_models}
    readiness = Readiness(ranker, router, probed, config.limits.request_timeout_s)
    versions = Versions(config, router, ranker, metrics, follow_shares) if config.versions else None
    background: list[Readiness | Versions] = [readiness] if versions is None else [readiness, versions]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for one in background:
            one.start()
        yield
        for one in background:
            one.stop()
        await rate_limits.close()
        await asyncio.to_thread(tracing.close)

    api = FastAPIOffline(  # serves /docs without a third-party host: many clusters have no internet access
        title="Rerank service",
        version=__version__,
        description="Ranks passages by their relevance to a query. "
        "Compatible with the NVIDIA NIM reranking API and with the APIs of other vendors.",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    _with_head(api.router)  # /docs
    detours = _detours(config, metrics, versions)
    endpoint = RankingEndpoint(config, keys, rate_limits, router, ranker, observer, detours)
    rankings = ranking_routes(endpoint, config)
    api.include_router(rankings)
    api.add_middleware(DirectRankings, routes=rankings.routes)
    api.include_router(_with_head(model_routes(config, keys, metrics)))
    api.include_router(_with_head(service_routes(config, keys, readiness, metrics, versions)))
    if config.service.playground:
        api.router.routes.extend(playground_routes())
    api.router.default = SecondLook(api.router)
    if config.service.cors_allow_origins:
        _allow_origins(api, config.service.cors_allow_origins)
    add_error_handlers(api, (NIM.paths[0], *routes_of(config.dialects)))
    add_openapi(api, config, keys_are_required=keys.are_required)
    return api


def _detours(config: RerankConfig, metrics: IngressMetrics, versions: Versions | None) -> dict[str, Detour]:
    """What ranks the calls for cascades and for models with versions, by id."""
    detours: dict[str, Detour] = {} if versions is None else dict.fromkeys(versions.models, versions)
    if config.cascades:
        from rerank_service.http.cascades import Cascades

        cascades = Cascades(config, metrics, versions)
        detours |= dict.fromkeys((cascade.id for cascade in config.cascades), cascades)
    return detours


def _with_head(routes: APIRouter) -> APIRouter:
    """Adds HEAD to each GET route, as Starlette does for its own routes. The OpenAPI document lists only GET."""
    for route in list(routes.routes):
        if isinstance(route, APIRoute):
            routes.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                response_class=route.response_class,
                include_in_schema=False,
            )
    return routes


def _allow_origins(api: FastAPI, origins: Sequence[str]) -> None:
    """Adds the middleware for web pages on other hosts. It answers preflight requests, which have no key."""
    api.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=("*",),
    )


def _models_on_same_replicas(config: RerankConfig, model: ModelConfig) -> list[str]:
    return [one.id for one in config.models if one is model or (one.pool is not None and one.pool == model.pool)]
