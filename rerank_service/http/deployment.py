"""The Serve deployment of the HTTP API. It builds the application from Ray's deployment handles."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from rerank_service.config import RerankConfig
from rerank_service.http.api import build_api
from rerank_service.http.versions import FollowShares
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.ranker import Ranker
from rerank_service.routing.replica_table import table_of
from rerank_service.routing.traffic_store import TrafficStore, follow
from rerank_service.telemetry.ingress_metrics import IngressMetrics
from rerank_service.telemetry.logging import log_through_serve
from rerank_service.telemetry.metrics import INGRESS_METRICS
from rerank_service.telemetry.ray_metrics import RayMetrics
from rerank_service.telemetry.tracing import Tracing

__all__ = ["Ingress"]


@serve.ingress()
class Ingress:
    """An ingress replica, which builds its ASGI application when it starts."""

    def __init__(self, config: RerankConfig, replicas: Mapping[str, DeploymentHandle[Any]]) -> None:
        """`replicas` maps model ids to the handles of the models' deployments. Models with their own application are
        not in this mapping, because they may start later or be redeployed.
        """
        log_through_serve()
        self._config = config
        own_applications = {
            model.id: DeploymentHandle[Any](model.deployment_name, model.application)
            for model in config.models
            if model.application is not None
        }
        handles = {**replicas, **own_applications}
        # All messages are plain values, for which cloudpickle, Serve's default, does the same in three times the time.
        score_methods = {
            model_id: handle.options(
                method_name="score", request_serialization="pickle", response_serialization="pickle"
            )
            for model_id, handle in handles.items()
        }
        tables = {model_id: table_of(handle.deployment_id) for model_id, handle in handles.items()}
        self._metrics = IngressMetrics(RayMetrics(INGRESS_METRICS))
        self._tracing = Tracing(config.tracing)
        self._router = ModelRouter(config, score_methods, self._metrics, self._tracing, tables)

    def __serve_build_asgi_app__(self) -> FastAPI:
        ranker = Ranker(self._router, self._config)
        follow_shares = _follow_shares() if self._config.versions else None
        return build_api(self._config, self._router, ranker, self._metrics, self._tracing, follow_shares)

    async def check_health(self) -> None:
        """Serve calls this regularly. An ingress that answers is healthy."""
        self._metrics.renew_gauges()


def _follow_shares() -> FollowShares:
    store = TrafficStore(ray.get_runtime_context().gcs_address)
    return partial(follow, store=store, application=serve.get_replica_context().app_name)
