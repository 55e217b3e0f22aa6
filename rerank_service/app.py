"""Binds the Serve deployments. No other module chooses their options.

`serve_config.yaml` names `build_app` as its import path. `build_model` is the import path of a model's own application.
"""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from rerank_service.config import (
    AutoscalingConfig,
    LimitsConfig,
    ModelConfig,
    PoolConfig,
    RerankConfig,
    parse_config,
    parse_model,
)
from rerank_service.http.access import ApiKeys
from rerank_service.http.deployment import Ingress
from rerank_service.replica.pool import pool_replica_class
from rerank_service.replica.replica import Replica
from rerank_service.routing.autoscaling import TokenPolicy
from rerank_service.routing.request_router import ExpectedSecondsRouter, PoolRouter

__all__ = ["bind_app", "build_app", "build_model", "serve_autoscaling"]

_INGRESS_HEALTH_CHECK_S = 4.0
"""Each check renews the ingress's gauges. Ray exports them every 10 s and drops one that it has missed twice; Serve's
default of 10 s missed an export whenever a check was late."""


def build_app(args: dict[str, Any]) -> Application:
    """The service: an ingress, and an autoscaled deployment for each model and each pool.

    `args` holds the settings of `RerankConfig`. `args` is a dict because Serve's own validation of a typed parameter
    reports problems less readably than ours. Raises `ConfigError`.
    """
    return bind_app(parse_config(args))


def bind_app(config: RerankConfig, replica_class: type[Replica] = Replica) -> Application:
    """Builds the service from parsed settings. Benchmarks and tests pass their own `replica_class` to replace the
    engine."""
    ApiKeys(config.auth)  # a bad key file fails the deployment here, with a clear message
    replicas = {
        model.id: _bind_replicas(model, replica_class, config.limits)
        for model in config.models
        if model.application is None and model.pool is None
    }
    for pool in config.pools:
        replicas |= dict.fromkeys((model.id for model in config.models_of(pool)), _bind_pool(pool, config))
    ingress = config.service.ingress
    return serve.deployment(
        name="ingress",
        ray_actor_options={"num_cpus": ingress.num_cpus},
        max_ongoing_requests=ingress.max_ongoing_requests,
        max_queued_requests=ingress.max_queued_requests,
        graceful_shutdown_timeout_s=config.limits.ingress_grace_s,
        health_check_period_s=_INGRESS_HEALTH_CHECK_S,
        autoscaling_config={
            "min_replicas": ingress.min_replicas,
            "max_replicas": ingress.max_replicas,
            "target_ongoing_requests": max(1, ingress.max_ongoing_requests // 4),
        },
        max_surge_percent=100,  # a rolling update starts the new ingress before it stops the old one
    )(Ingress).bind(config, replicas)


def build_model(args: dict[str, Any]) -> Application:
    """The replicas of one model as a separate application, for `models[].application`.

    The application can be added, changed and removed while the replicas of other models keep running. `args` holds the
    settings of `ModelConfig`. Raises `ConfigError`.
    """
    model = parse_model(args)
    root = serve.deployment(
        name="root",
        ray_actor_options={"num_cpus": 0},
        autoscaling_config={"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1},
    )
    return root(_Root).bind(_bind_replicas(model, Replica, LimitsConfig()))


class _Root:
    """A root deployment that is never started. Serve refuses a custom request router on an application's root
    deployment."""

    def __init__(self, replicas: Any) -> None: ...


def _bind_replicas(model: ModelConfig, replica_class: type[Replica], limits: LimitsConfig) -> Application:
    return serve.deployment(
        name=model.deployment_name,
        user_config=model.batching.model_dump(mode="json"),
        request_router_config=_router_config(ExpectedSecondsRouter),
        **_replica_options(model, limits),
    )(replica_class).bind(model)


def _bind_pool(pool: PoolConfig, config: RerankConfig) -> Application:
    models = config.models_of(pool)
    return serve.deployment(
        name=pool.deployment_name,
        user_config={model.id: model.batching.model_dump(mode="json") for model in models},
        request_router_config=_router_config(PoolRouter, spread_above_tokens=pool.spread_above_tokens),
        **_replica_options(pool, config.limits),
    )(pool_replica_class(pool.models_per_replica)).bind(pool, models)


def _replica_options(host: ModelConfig | PoolConfig, limits: LimitsConfig) -> dict[str, Any]:
    replica = host.replica
    return {
        "ray_actor_options": {
            "num_cpus": replica.num_cpus,
            "num_gpus": replica.num_gpus,
            "resources": dict(replica.resources),
        },
        "max_ongoing_requests": replica.max_ongoing_requests,
        "graceful_shutdown_timeout_s": replica.graceful_shutdown_timeout_s or limits.replica_grace_s,
        "health_check_period_s": replica.health_check_period_s,
        "health_check_timeout_s": replica.health_check_timeout_s,
        "autoscaling_config": serve_autoscaling(host.autoscaling),
    }


def _router_config(router: type[ExpectedSecondsRouter], **options: Any) -> RequestRouterConfig:
    path = f"{router.__module__}.{router.__qualname__}"
    return RequestRouterConfig.model_validate({"request_router_class": path, "request_router_kwargs": options})


def serve_autoscaling(config: AutoscalingConfig) -> dict[str, Any]:
    """Serve's `autoscaling_config`: Serve's own options, and our policy with the policy's arguments."""
    options = {key: value for key, value in config.model_dump().items() if value is not None}
    policy_kwargs = {
        "target_utilisation": options.pop("target_utilisation"),
        "max_wait_s": options.pop("max_wait_s"),
        "steady_s": options.pop("downscale_delay_s"),
        "calls_per_replica": options["target_ongoing_requests"],
        "look_back_s": options["look_back_period_s"],
        "report_interval_s": options["metrics_interval_s"],
        "upscale_delay_s": options.pop("upscale_delay_s"),
        "initial_replicas": options.pop("initial_replicas", None),
    }
    # The policy applies the delays itself. Serve would apply them to the policy's result, which stays high for a while
    # after each peak.
    options |= dict.fromkeys(("upscale_delay_s", "downscale_delay_s", "downscale_to_zero_delay_s"), 0)
    policy = f"{TokenPolicy.__module__}:{TokenPolicy.__qualname__}"
    return options | {"policy": {"policy_function": policy, "policy_kwargs": policy_kwargs}}
