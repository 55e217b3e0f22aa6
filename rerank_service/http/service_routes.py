"""What a platform asks of the service: models, health, metadata, metrics. No model is called here."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from rerank_service import __version__
from rerank_service.config import ModelConfig, RerankConfig
from rerank_service.http.auth import ApiKeys
from rerank_service.http.readiness import Readiness
from rerank_service.telemetry.metrics.of_ingress import IngressMetrics

__all__ = ["service_routes"]

_API_VERSION = "2.0.0"
_PUBLIC: dict[str, Any] = {"security": []}
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def service_routes(config: RerankConfig, keys: ApiKeys, readiness: Readiness, metrics: IngressMetrics) -> APIRouter:
    """GET routes. Only `/v1/models` asks for a key; probes and scrapers have none."""
    routes = APIRouter(tags=["Service"])
    started_at = int(time.time())

    @routes.get("/v1/models", responses={401: {"description": "Missing or invalid API key."}})
    async def models(request: Request) -> dict[str, Any]:
        """Models served; an alias has the model's id as `root`."""
        keys.check(request.headers.get("authorization"))
        entries = [_entry(model, name, started_at) for model in _default_first(config) for name in model.names]
        return {"object": "list", "data": entries}

    @routes.get("/v1/health/live", openapi_extra=_PUBLIC)
    async def live() -> dict[str, Any]:
        """Whether the process answers."""
        return {"object": "health.response", "message": "Service is live.", "status": "live"}

    @routes.get(
        "/v1/health/ready",
        openapi_extra=_PUBLIC,
        responses={503: {"description": "Some model has not scored a pair yet, or no model's replicas answer."}},
    )
    async def ready() -> Response:
        """Whether every permanently deployed model has scored a test pair, and the replicas of at least one of them
        have answered within the last 10 seconds. A model that does not answer while others do is named in
        `unreachable`."""
        return _ready(readiness)

    @routes.get("/v1/metadata", openapi_extra=_PUBLIC)
    async def metadata() -> dict[str, Any]:
        """Version and models, in the form of a NIM.

        `precision` is what a model computes in on its replicas, where they differ the coarsest; null until one of them
        has answered, and after a minute without an answer.
        """
        return {
            "version": __version__,
            "modelInfo": [
                {
                    "modelUrl": model.checkpoint.source,
                    "shortName": model.id,
                    "precision": _coarsest(metrics.precisions(model.id)),
                }
                for model in config.models
            ],
            "repository_override": "",
            "assetInfo": [],
            "licenseInfo": _LICENSE,
        }

    @routes.get("/v1/version", openapi_extra=_PUBLIC)
    async def version() -> dict[str, str]:
        """Versions of the service and of the API it speaks."""
        return {"release": __version__, "api": _API_VERSION}

    @routes.get("/v1/license", openapi_extra=_PUBLIC)
    async def license_() -> dict[str, str]:
        """Licence of the service; each model has its own."""
        return _LICENSE

    @routes.get("/v1/manifest", openapi_extra=_PUBLIC)
    async def manifest() -> dict[str, Any]:
        """Where each model's files come from."""
        return {"manifest": [_provenance(model) for model in config.models]}

    @routes.get("/metrics", response_class=Response, responses=_METRICS, openapi_extra=_PUBLIC)
    @routes.get("/v1/metrics", response_class=Response, responses=_METRICS, openapi_extra=_PUBLIC)
    async def prometheus() -> Response:
        """Metrics of this ingress in Prometheus text."""
        return Response(metrics.exposition(), media_type=_PROMETHEUS)

    return routes


_LICENSE = {
    "name": "Apache License 2.0",
    "spdx": "Apache-2.0",
    "url": "https://www.apache.org/licenses/LICENSE-2.0",
}
_METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


_BY_COARSENESS = ("float32", "float16", "bfloat16", "int8", "float8")


def _coarsest(precisions: set[str]) -> str | None:
    return max(precisions, key=_BY_COARSENESS.index, default=None)


def _default_first(config: RerankConfig) -> list[ModelConfig]:
    """Clients that are given no model take the first of the list."""
    default = config.default_model_id.casefold()
    return sorted(config.models, key=lambda model: default not in {name.casefold() for name in model.names})


def _entry(model: ModelConfig, name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "rerank-service", "root": model.id}


def _provenance(model: ModelConfig) -> dict[str, str | None]:
    checkpoint = model.checkpoint
    return {
        "model": model.id,
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "sha256": checkpoint.sha256,
    }


def _ready(readiness: Readiness) -> Response:
    answer: dict[str, Any] = {"object": "health.response"}
    waiting_for, unreachable = readiness.waiting_for, readiness.unreachable
    if unreachable:
        answer["unreachable"] = unreachable
    if not readiness.is_ready:
        cause = f"waiting for: {', '.join(waiting_for)}" if waiting_for else "no replica of any model answers"
        message = f"Service is not ready; {cause}"
        return JSONResponse(answer | {"message": message, "status": "not_ready", "ready": False}, 503)
    message = f"Service is ready, except for: {', '.join(unreachable)}" if unreachable else "Service is ready."
    return JSONResponse(answer | {"message": message, "status": "ready", "ready": True})
