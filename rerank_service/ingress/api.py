"""The HTTP API: a FastAPI application over a `Ranker`. It knows routes and bodies, nothing of Ray.

Built anew in each ingress replica by `build_api`, so that routes close over live objects and the OpenAPI
document states the limits in force.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi_offline import FastAPIOffline

from rerank_service.config import RerankConfig
from rerank_service.ingress.auth import ApiKeys
from rerank_service.ingress.body import read_json_body
from rerank_service.ingress.deadline import client_timeout_s
from rerank_service.ingress.envelope import add_error_handlers
from rerank_service.ingress.observation import Observation, Observer
from rerank_service.ingress.openapi import RANKING_OPERATION, add_openapi
from rerank_service.ingress.playground_routes import playground_routes
from rerank_service.ingress.rate_limits import RateLimits, caller_of
from rerank_service.ingress.readiness import Readiness
from rerank_service.ingress.service_routes import service_routes
from rerank_service.model_router import ModelRouter
from rerank_service.ranker import Ranked, Ranker
from rerank_service.schema import Ranking, RankingResponse, Usage, parse_ranking_request
from rerank_service.version import __version__

__all__ = ["build_api"]

_DIALECT = "nim"
"""Metric label of NVIDIA's own API."""


def build_api(config: RerankConfig, router: ModelRouter, ranker: Ranker) -> FastAPI:
    """The application, ready to serve; raises `ConfigError` if the keys cannot be read."""
    keys = ApiKeys(config.auth)
    observer = Observer(config.logs, router.metrics, router.tracing)
    rate_limits = RateLimits(config.rate_limits)
    readiness = Readiness(ranker, [model.id for model in config.probed_models])

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
        "Speaks the NVIDIA NIM reranking API.",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    api.include_router(_RankingRoutes(config, keys, rate_limits, router, ranker, observer).routes())
    api.include_router(service_routes(config, keys, readiness, router.metrics))
    if config.service.playground:
        api.router.routes.extend(playground_routes())
    add_error_handlers(api)
    add_openapi(api, config.limits, keys_are_required=keys.are_required)
    return api


class _RankingRoutes:
    """`/v1/ranking` and the hosted URLs of the same."""

    def __init__(
        self,
        config: RerankConfig,
        keys: ApiKeys,
        rate_limits: RateLimits,
        router: ModelRouter,
        ranker: Ranker,
        observer: Observer,
    ) -> None:
        self._limits = config.limits
        self._rate_limits = rate_limits
        self._keys = keys
        self._router = router
        self._ranker = ranker
        self._observer = observer

    def routes(self) -> APIRouter:
        routes = APIRouter(tags=["Reranking"])
        options: dict[str, Any] = {"methods": ["POST"], "openapi_extra": RANKING_OPERATION, "response_class": Response}
        routes.add_api_route(
            "/v1/ranking",
            self.rank,
            operation_id="rankPassages",
            summary="Rank Candidate Passages",
            description="Score candidate passages against a query using a NeMo Retriever reranker.",
            **options,
        )
        routes.add_api_route(
            "/v1/retrieval/nvidia/reranking",
            self.rank,
            operation_id="rankPassagesHosted",
            summary="Rank, at the hosted URL",
            **options,
        )
        routes.add_api_route(
            "/v1/retrieval/nvidia/{slug}/reranking",
            self.rank_at_slug,
            operation_id="rankPassagesHostedModel",
            summary="Rank, at the hosted URL of a model",
            description="The slug is the model's name with `_` for `.`. A model named in the body wins.",
            **options,
        )
        return routes

    async def rank(self, request: Request) -> Response:
        return await self._observer.answer(request, _DIALECT, partial(self._answer, request, None))

    async def rank_at_slug(self, slug: str, request: Request) -> Response:
        return await self._observer.answer(request, _DIALECT, partial(self._answer, request, slug))

    async def _answer(self, request: Request, slug: str | None, observation: Observation) -> Response:
        self._keys.check(request.headers.get("authorization"))
        caller = self._caller(request)
        headers = await self._rate_limits.take_request(caller)
        timeout_s = client_timeout_s(request.headers)
        slug_model = None if slug is None else self._router.resolve_slug(slug)
        body = await read_json_body(request, self._limits.max_body_bytes)
        started = time.perf_counter()
        ranking = parse_ranking_request(body, self._limits)
        observation.parse_s = time.perf_counter() - started
        model = slug_model if ranking.model is None and slug_model else self._router.resolve(ranking.model)
        observation.model_id = model.id
        headers |= await self._rate_limits.take_passages(caller, len(ranking.passages))
        passages = [passage.text for passage in ranking.passages]
        ranked = await self._ranker.rank(model.id, ranking.query.text, passages, ranking.truncate or "END", timeout_s)
        observation.ranked = ranked
        return Response(_body(ranked), headers=headers, media_type="application/json")

    def _caller(self, request: Request) -> str:
        authorization = request.headers.get("authorization") if self._keys.are_required else None
        return caller_of(authorization, request.client and request.client.host)


def _body(ranked: Ranked) -> str:
    return RankingResponse(
        rankings=tuple(Ranking(index=index, logit=ranked.logits[index]) for index in ranked.order),
        usage=Usage(prompt_tokens=ranked.num_tokens, total_tokens=ranked.num_tokens),
    ).model_dump_json()
