"""The Serve deployment of the HTTP API: it ties Ray's handles to the application and nothing else."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from rerank_service.config import RerankConfig
from rerank_service.http.api import build_api
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.ranker import Ranker
from rerank_service.routing.replica_table import table_of
from rerank_service.telemetry.logging import log_through_serve
from rerank_service.telemetry.metrics import INGRESS_METRICS
from rerank_service.telemetry.metrics.of_ingress import IngressMetrics
from rerank_service.telemetry.metrics.through_ray import RayMetrics

__all__ = ["Ingress"]


@serve.ingress()
class Ingress:
    """An ASGI application per replica, built when the replica starts."""

    def __init__(self, config: RerankConfig, replicas: Mapping[str, DeploymentHandle[Any]]) -> None:
        """`replicas` has the handle of each model's deployment, by model id, but for models with an application of
        their own: these may come later, or go and come back.
        """
        log_through_serve(keep_access_log=False)
        self._config = config
        apart = {
            model.id: DeploymentHandle[Any](model.deployment_name, model.application)
            for model in config.models
            if model.application is not None
        }
        handles = {**replicas, **apart}
        score_methods = {model_id: handle.score for model_id, handle in handles.items()}
        tables = {model_id: table_of(handle.deployment_id) for model_id, handle in handles.items()}
        metrics = IngressMetrics([RayMetrics(INGRESS_METRICS)])
        self._router = ModelRouter(config, score_methods, metrics, tables=tables)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self._config, self._router, Ranker(self._router, self._config))
