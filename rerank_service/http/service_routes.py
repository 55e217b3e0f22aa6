"""Routes for platforms and tools: health, metadata and metrics. None of these routes calls a model. Health needs no
key; metadata and metrics need one only if `auth.private_routes` names them."""

import time
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from rerank_service import __version__
from rerank_service.config import DialectName, ModelConfig, PrivateRoute, RerankConfig
from rerank_service.http.access import ApiKeys
from rerank_service.http.readiness import Readiness
from rerank_service.http.versions import Versions
from rerank_service.telemetry.ingress_metrics import IngressMetrics

__all__ = ["service_routes"]

_API_VERSION = "2.0.0"
_PUBLIC: dict[str, Any] = {"security": []}
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_PROMETHEUS_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
_LICENSE = {
    "name": "Apache License 2.0",
    "spdx": "Apache-2.0",
    "url": "https://www.apache.org/licenses/LICENSE-2.0",
}
_FROM_FINEST = ("float32", "float16", "bfloat16", "int8", "float8")


def service_routes(
    config: RerankConfig,
    keys: ApiKeys,
    readiness: Readiness,
    metrics: IngressMetrics,
    versions: Versions | None = None,
) -> APIRouter:
    """Builds the GET routes of NVIDIA's API, and similar routes of the enabled dialects."""
    routes = APIRouter(tags=["Service"])
    access = _access(config, keys, PrivateRoute.METRICS)

    @routes.get("/metrics", response_class=Response, responses=_PROMETHEUS_RESPONSE, **access)
    @routes.get("/v1/metrics", response_class=Response, responses=_PROMETHEUS_RESPONSE, **access)
    async def prometheus() -> Response:
        """Metrics of this ingress in Prometheus text."""
        return Response(metrics.exposition(), media_type=_PROMETHEUS)

    _add_health(routes, readiness)
    _add_dialect_routes(routes, config, readiness)
    _add_descriptions(routes, config, metrics, versions, _access(config, keys, PrivateRoute.METADATA))
    return routes


def _access(config: RerankConfig, keys: ApiKeys, route: PrivateRoute) -> dict[str, Any]:
    """Options of a route that needs a key if the configuration says so."""
    if route not in config.auth.private_routes:
        return {"openapi_extra": _PUBLIC}

    def authenticate(request: Request) -> None:
        keys.authenticate(request.headers)

    return {"dependencies": [Depends(authenticate)]}


_UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"description": "A model has not scored its test pair yet, or no replica of any model answers."}
}


def _add_health(routes: APIRouter, readiness: Readiness) -> None:
    @routes.get("/v1/health/live", openapi_extra=_PUBLIC)
    async def live() -> dict[str, Any]:
        """Whether the process responds."""
        return {"object": "health.response", "message": "Service is live.", "status": "live"}

    @routes.get("/v1/health/ready", openapi_extra=_PUBLIC, responses=_UNAVAILABLE)
    async def ready() -> Response:
        """Whether every permanently deployed model has scored a test pair, and the replicas of at least one of these
        models have answered within the last 10 seconds. While other models answer, a model without answers is listed in
        `unreachable`."""
        return _readiness_response(readiness)


def _add_dialect_routes(routes: APIRouter, config: RerankConfig, readiness: Readiness) -> None:
    spoken = set(config.dialects)
    if spoken & {DialectName.VLLM, DialectName.INFINITY, DialectName.TEI}:

        @routes.get("/health", openapi_extra=_PUBLIC, responses=_UNAVAILABLE)
        async def health() -> Response:
            """Readiness, as in vLLM, Infinity and text-embeddings-inference."""
            answer = _readiness(readiness)
            if answer["ready"]:
                return JSONResponse({"unix": time.time()})  # Infinity's form; the other two send no body
            error = {"error": answer["message"], "error_type": "Unhealthy"}  # text-embeddings-inference's form
            return JSONResponse(answer | error, 503)

    if spoken & {DialectName.VLLM, DialectName.TEI}:

        @routes.get("/ping", openapi_extra=_PUBLIC, responses=_UNAVAILABLE)
        async def ping() -> Response:
            """Readiness, as in vLLM and text-embeddings-inference, for SageMaker."""
            return _readiness_response(readiness)

    if DialectName.VLLM in config.dialects:

        @routes.get("/version", openapi_extra=_PUBLIC)
        async def vllm_version() -> dict[str, str]:
            """Version of the service, in the form of vLLM."""
            return {"version": __version__}


def _readiness_response(readiness: Readiness) -> Response:
    answer = _readiness(readiness)
    return JSONResponse(answer, 200 if answer["ready"] else 503)


def _readiness(readiness: Readiness) -> dict[str, Any]:
    answer: dict[str, Any] = {"object": "health.response"}
    waiting_for, unreachable = readiness.waiting_for, readiness.unreachable
    if unreachable:
        answer["unreachable"] = unreachable
    if not readiness.is_ready:
        cause = f"waiting for: {', '.join(waiting_for)}" if waiting_for else "no replica of any model answers"
        return answer | {"message": f"Service is not ready; {cause}", "status": "not_ready", "ready": False}
    message = f"Service is ready, except for: {', '.join(unreachable)}" if unreachable else "Service is ready."
    return answer | {"message": message, "status": "ready", "ready": True}


def _model_info(model: ModelConfig, metrics: IngressMetrics, versions: Versions | None) -> dict[str, Any]:
    start, numerics = metrics.slowest_start(model.id), metrics.numerics.get(model.id)
    version = None if versions is None else versions.describe(model.id)
    return {
        "modelUrl": model.checkpoint.source,
        "shortName": model.id,
        "precision": max(metrics.precisions(model.id), key=_FROM_FINEST.index, default=None),
        "numerics": numerics and numerics.name,
        "numerics_reason": numerics and numerics.reason,
        "start_seconds": start and {stage: round(seconds, 1) for stage, seconds in start.by_stage().items()},
        "unverified": metrics.unverified.get(model.id),
        **({} if version is None else {"version": version}),
    }


def _add_descriptions(
    routes: APIRouter,
    config: RerankConfig,
    metrics: IngressMetrics,
    versions: Versions | None,
    access: dict[str, Any],
) -> None:
    @routes.get("/v1/metadata", **access)
    async def metadata() -> dict[str, Any]:
        """Version and models, in the form of a NIM.

        `precision` is the number format in which a model computes, or the coarsest format if the model's replicas
        differ. `numerics` names all number types and the kind of device. All replicas of a deployment have the same
        numerics, and `numerics_reason` tells why they were chosen. `start_seconds` is the time, by stage, that the
        slowest of the replicas took to load the model. All are null before a replica's first answer; `precision` and
        `start_seconds` also after a minute without an answer. `unverified` tells what the service assumes about a
        model; null if it assumes nothing, or if `verify` has confirmed the assumptions. Only a version has `version`:
        its model, its current shares, and whether it can receive requests.
        """
        return {
            "version": __version__,
            "modelInfo": [_model_info(model, metrics, versions) for model in config.models],
            "repository_override": "",
            "assetInfo": [],
            "licenseInfo": _LICENSE,
        }

    @routes.get("/v1/version", openapi_extra=_PUBLIC)
    async def version() -> dict[str, str]:
        """Versions of the service and of its API."""
        return {"release": __version__, "api": _API_VERSION}

    @routes.get("/v1/license", openapi_extra=_PUBLIC)
    async def license_() -> dict[str, str]:
        """License of the service. Each model has its own license."""
        return _LICENSE

    @routes.get("/v1/manifest", **access)
    async def manifest() -> dict[str, Any]:
        """Source of each model's files."""
        checkpoints = [(model.id, model.checkpoint) for model in config.models]
        return {
            "manifest": [
                {"model": model_id, "source": one.source, "revision": one.revision, "sha256": one.sha256}
                for model_id, one in checkpoints
            ]
        }
