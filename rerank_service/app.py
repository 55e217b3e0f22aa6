"""Binds the deployments. The only place where Serve options are chosen.

`serve_config.yaml` names `build_app` as its import path.
"""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from rerank_service.autoscaling import TokenPolicy
from rerank_service.config import AutoscalingConfig, ModelConfig, parse_config
from rerank_service.ingress.auth import ApiKeys
from rerank_service.ingress.deployment import Ingress
from rerank_service.replica import Replica
from rerank_service.replica_choice import FewestTokensRouter

__all__ = ["build_app", "serve_autoscaling"]

INGRESS_NAME = "ingress"
_AUTOSCALING_POLICY = f"{TokenPolicy.__module__}:{TokenPolicy.__qualname__}"
_REQUEST_ROUTER = RequestRouterConfig.model_validate(
    {"request_router_class": f"{FewestTokensRouter.__module__}.{FewestTokensRouter.__qualname__}"}
)


def build_app(args: dict[str, Any]) -> Application:
    """The application: an ingress, and one autoscaled deployment per model variant.

    `args` are the settings, a `RerankConfig` as a dict: Serve would validate an annotated model itself, but
    tell what is wrong less readably. Raises `ConfigError`.
    """
    config = parse_config(args)
    ApiKeys(config.auth)  # a bad key file fails the deployment here, with its own message
    replicas = {model.id: _replicas(model) for model in config.models}
    ingress = config.service.ingress
    return serve.deployment(
        name=INGRESS_NAME,
        ray_actor_options={"num_cpus": ingress.num_cpus},
        max_ongoing_requests=ingress.max_ongoing_requests,
        autoscaling_config={
            "min_replicas": ingress.min_replicas,
            "max_replicas": ingress.max_replicas,
            "target_ongoing_requests": max(1, ingress.max_ongoing_requests // 4),
        },
        max_surge_percent=100,  # a new ingress before the old one goes: no gap in a rolling update
    )(Ingress).bind(config, replicas)


def _replicas(model: ModelConfig) -> Application:
    replica = model.replica
    return serve.deployment(
        name=model.deployment_name,
        ray_actor_options=_actor_options(model),
        user_config=model.batching.model_dump(mode="json"),
        max_ongoing_requests=replica.max_ongoing_requests,
        graceful_shutdown_timeout_s=replica.graceful_shutdown_timeout_s,
        health_check_period_s=replica.health_check_period_s,
        health_check_timeout_s=replica.health_check_timeout_s,
        autoscaling_config=serve_autoscaling(model.autoscaling),
        request_router_config=_REQUEST_ROUTER,
    )(Replica).bind(model)


def _actor_options(model: ModelConfig) -> dict[str, Any]:
    replica = model.replica
    return {"num_cpus": replica.num_cpus, "num_gpus": replica.num_gpus, "resources": dict(replica.resources)}


def serve_autoscaling(config: AutoscalingConfig) -> dict[str, Any]:
    """Serve's own options, and our policy with what it takes."""
    options = {key: value for key, value in config.model_dump().items() if value is not None}
    policy_kwargs = {
        "target_utilisation": options.pop("target_utilisation"),
        "max_wait_s": options.pop("max_wait_s"),
        "steady_s": options.pop("downscale_delay_s"),
        "calls_per_replica": options["target_ongoing_requests"],
    }
    options |= {"downscale_delay_s": 0, "downscale_to_zero_delay_s": 0}  # the policy itself waits
    return options | {"policy": {"policy_function": _AUTOSCALING_POLICY, "policy_kwargs": policy_kwargs}}
