"""The whole configuration, and the rules that hold between its sections."""

from collections import defaultdict
from typing import Annotated, Self

from pydantic import Field, model_validator

from rerank_service.config.cascade import CascadeConfig
from rerank_service.config.model import ModelConfig, PoolConfig
from rerank_service.config.replica import ReplicaConfig, default_batch_tokens
from rerank_service.config.section import Section
from rerank_service.config.service import (
    AuthConfig,
    DialectName,
    LimitsConfig,
    LogConfig,
    PathConfig,
    RankingPath,
    RateLimitConfig,
    ServiceConfig,
    TracingConfig,
)
from rerank_service.config.version import VersionConfig

__all__ = ["RerankConfig"]

_DEFAULT_MAX_DOCUMENTS = 1_000
_ALL_PERCENT = 100


class RerankConfig(Section):
    """The whole configuration: the `args` of the Serve application `rerank_service.app:build_app`."""

    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    """The models to serve, at least one."""

    pools: tuple[PoolConfig, ...] = ()
    """Replicas that several models share; see `models[].pool`."""

    cascades: tuple[CascadeConfig, ...] = ()
    """Names under which several models rank a request in stages."""

    service: ServiceConfig = ServiceConfig()
    """Default model, playground, and the replicas that answer HTTP requests."""

    limits: LimitsConfig = LimitsConfig()
    """Limits of a single request."""

    auth: AuthConfig = AuthConfig()
    """Authentication."""

    rate_limits: RateLimitConfig = RateLimitConfig()
    """Quotas per minute."""

    dialects: tuple[DialectName, ...] = tuple(DialectName)
    """Compatible APIs of other vendors to serve, in order of preference. The default is all of them. If several APIs
    share a path and a request matches more than one, the first API in this list answers."""

    paths: dict[RankingPath, PathConfig] = Field(default={})
    """Exceptions for single paths, such as `/v1/rerank: {prefer: voyage}`."""

    logs: LogConfig = LogConfig()
    """Access log."""

    tracing: TracingConfig = TracingConfig()
    """Traces."""

    @model_validator(mode="after")
    def _names_are_unambiguous(self) -> Self:
        owners: dict[str, str] = {}
        for model in self.named:
            for name in model.names:
                owner = owners.setdefault(name.casefold(), model.id)
                if owner != model.id:
                    raise ValueError(f"name {name!r} belongs to both {owner!r} and {model.id!r}; rename one")
        ids = [model.id for model in self.named]
        if repeated := {one for one in ids if ids.count(one) > 1}:
            raise ValueError(f"two models have the same id: {', '.join(sorted(repeated))}; rename one")
        hosts: tuple[ModelConfig | PoolConfig, ...] = (*self.models, *self.pools)
        if len({host.deployment_name for host in hosts}) < len(hosts):
            raise ValueError("the names of two models or pools give the same deployment name; rename one")
        default = self.service.default_model
        if default is not None and default.casefold() not in owners:
            raise ValueError(f"service.default_model {default!r} is not among models: {sorted(owners)}")
        return self

    @model_validator(mode="after")
    def _versions_belong_to_models(self) -> Self:
        listed = {model.id for model in self.listed_models}
        if not listed:
            raise ValueError("every model is a version of another model; at least one must not have version")
        shares: defaultdict[str, float] = defaultdict(float)
        for model in self.models:
            if model.version is None:
                continue
            if model.version.of not in listed:
                raise ValueError(
                    f"model {model.id!r}: version.of {model.version.of!r} must be the id of a model that is not a "
                    f"version; there are {', '.join(sorted(listed))}"
                )
            shares[model.version.of] += model.version.traffic_percent
        if above := sorted(of for of, percent in shares.items() if percent > _ALL_PERCENT):
            raise ValueError(f"the versions of {', '.join(above)} have more than 100 traffic_percent together")
        if self.default_model_id.casefold() in {name.casefold() for m in self.models if m.version for name in m.names}:
            raise ValueError(f"service.default_model {self.default_model_id!r} is a version; name the model itself")
        return self

    @model_validator(mode="after")
    def _stages_are_models(self) -> Self:
        listed, cascades = {model.id for model in self.listed_models}, {cascade.id for cascade in self.cascades}
        for cascade in self.cascades:
            for stage in cascade.stages:
                if stage.model in listed:
                    continue
                why = "is a cascade itself" if stage.model in cascades else "is not the id of such a model"
                raise ValueError(
                    f"cascade {cascade.id!r}: a stage needs the id of a model that is not a version, and "
                    f"{stage.model!r} {why}; there are {', '.join(sorted(listed))}"
                )
        return self

    @model_validator(mode="after")
    def _dialects_are_listed_once(self) -> Self:
        if len(set(self.dialects)) < len(self.dialects):
            raise ValueError("dialects lists an API twice; remove one")
        return self

    @model_validator(mode="after")
    def _pools_exist_and_are_used(self) -> Self:
        known, used = {pool.name for pool in self.pools}, {model.pool for model in self.models if model.pool}
        if missing := used - known:
            raise ValueError(f"models name a pool that is missing from pools: {', '.join(sorted(missing))}")
        if unused := known - used:
            raise ValueError(f"pools has a pool that no model uses: {', '.join(sorted(unused))}")
        return self

    @model_validator(mode="after")
    def _largest_request_is_within_the_quota(self) -> Self:
        per_minute = self.rate_limits.passages_per_minute
        for name in ("max_passages", "max_documents"):
            largest = getattr(self.limits, name)
            if per_minute is not None and largest is not None and per_minute < largest:
                raise ValueError(
                    f"rate_limits.passages_per_minute {per_minute} is less than limits.{name} {largest}: "
                    "the largest request could never pass; raise the quota or lower the limit"
                )
        return self

    @model_validator(mode="after")
    def _models_apart_have_time_to_finish(self) -> Self:
        limit_s, default_s = self.limits.request_timeout_s, LimitsConfig().replica_grace_s
        for model in self.models:
            is_default = model.replica.graceful_shutdown_timeout_s is None
            if model.application is not None and is_default and limit_s >= default_s:
                raise ValueError(
                    f"model {model.id!r} has its own application and needs replica.graceful_shutdown_timeout_s above "
                    f"limits.request_timeout_s {limit_s:g}: otherwise a replaced replica is stopped after "
                    f"{default_s:g} s, and its requests are scored again"
                )
        return self

    @property
    def max_documents(self) -> int:
        """Maximum number of documents in a request of another vendor's API."""
        limits, per_minute = self.limits, self.rate_limits.passages_per_minute
        if limits.max_documents is not None:
            return limits.max_documents
        is_default = limits.max_passages == LimitsConfig().max_passages
        most = _DEFAULT_MAX_DOCUMENTS if is_default else limits.max_passages
        return most if per_minute is None else min(most, per_minute)

    def models_of(self, pool: PoolConfig) -> tuple[ModelConfig, ...]:
        """The models that the pool's replicas load."""
        return tuple(model for model in self.models if model.pool == pool.name)

    @property
    def listed_models(self) -> tuple[ModelConfig, ...]:
        """The models that clients are told about: all except versions."""
        return tuple(model for model in self.models if model.version is None)

    @property
    def listed(self) -> tuple[ModelConfig | CascadeConfig, ...]:
        """The models and cascades that clients are told about."""
        return (*self.listed_models, *self.cascades)

    @property
    def named(self) -> tuple[ModelConfig | CascadeConfig, ...]:
        """All models, including versions, and all cascades."""
        return (*self.models, *self.cascades)

    def single_model(self, named: ModelConfig | CascadeConfig) -> ModelConfig:
        """The model itself, or the model of a cascade's last stage."""
        if isinstance(named, ModelConfig):
            return named
        return next(model for model in self.models if model.id == named.last_model)

    @property
    def versions(self) -> dict[str, VersionConfig]:
        """The settings of all versions, by model id."""
        return {model.id: model.version for model in self.models if model.version is not None}

    @property
    def probed_models(self) -> tuple[ModelConfig, ...]:
        """The models that must score a pair before the service is ready.

        These are all models with permanent replicas, and one model of each pool with permanent replicas. All other
        models are started or loaded on demand. A version is not required either, because its model answers without it.
        """
        own = [model for model in self.listed_models if model.pool is None and model.autoscaling.min_replicas]
        pooled = [self.models_of(pool)[0] for pool in self.pools if pool.autoscaling.min_replicas]
        return (*own, *pooled)

    def replica_of(self, model: ModelConfig) -> ReplicaConfig:
        """Resources of the replicas that score a model: the model's own replicas or those of its pool."""
        return next((pool.replica for pool in self.pools if pool.name == model.pool), model.replica)

    def shard_tokens_of(self, model: ModelConfig) -> int:
        """`service.ingress.shard_tokens`, or the default number of tokens for the model's hardware."""
        on_gpu = self.replica_of(model).num_gpus > 0
        return self.service.ingress.shard_tokens or default_batch_tokens(on_gpu=on_gpu)

    @property
    def default_model_id(self) -> str:
        """Name of the model that answers requests without a `model`."""
        return self.service.default_model or self.listed_models[0].id
