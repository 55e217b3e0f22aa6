"""Settings of one model, and of a pool of replicas that several models share."""

import re
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from rerank_service.config.checkpoint import CheckpointConfig
from rerank_service.config.engine import EngineConfig
from rerank_service.config.replica import AutoscalingConfig, BatchingConfig, ReplicaConfig
from rerank_service.config.section import Section
from rerank_service.config.version import VersionConfig

__all__ = ["ModelConfig", "ModelName", "PoolConfig"]

ModelName = Annotated[str, Field(min_length=1, max_length=200)]


class ModelConfig(Section):
    """A model: the name that clients send, its checkpoint, and its replicas."""

    id: ModelName
    """Name that clients send as `model`, for instance `nvidia/llama-3.2-nv-rerankqa-1b-v2`."""

    aliases: tuple[ModelName, ...] = ()
    """Other names for the same model, such as names that existing clients send. Names are matched
    case-insensitively."""

    checkpoint: CheckpointConfig
    """The model's files."""

    window_tokens: Annotated[int, Field(ge=16)] | None = None
    """Maximum tokens of a pair. A longer pair is truncated, or refused under `truncate: NONE`. Null: the smaller of the
    tokenizer's `model_max_length` and the model's number of positions. Lower it to save memory and time."""

    engine: EngineConfig = EngineConfig()
    """How the model runs."""

    batching: BatchingConfig = BatchingConfig()
    """How each replica forms batches. Changes are applied without a restart."""

    replica: ReplicaConfig = ReplicaConfig()
    """Resources of each replica."""

    autoscaling: AutoscalingConfig = AutoscalingConfig()
    """Number of replicas."""

    application: str | None = None
    """Name of the Serve application that has this model's replicas (import path `rerank_service.app:build_model`). With
    a separate application, the model can be added, changed or removed without restarting other models. Null: the
    replicas belong to the ingress's application."""

    pool: str | None = None
    """Name of a pool whose replicas load this model on demand. A model in a pool has no separate replicas. Null: the
    model has its own replicas."""

    version: VersionConfig | None = None
    """Makes this model a canary or a shadow of another model. Null: it is a model of its own."""

    @model_validator(mode="before")
    @classmethod
    def _cascades_have_their_own_section(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and "stages" in settings:
            raise ValueError("a cascade has no checkpoint or replicas: move the entry with `stages` to `cascades`")
        return settings

    @model_validator(mode="after")
    def _pooled_models_have_no_replicas(self) -> Self:
        defaults = {"replica": ReplicaConfig(), "autoscaling": AutoscalingConfig(), "application": None}
        own = [name for name, default in defaults.items() if getattr(self, name) != default]
        if self.pool is not None and own:
            raise ValueError(f"a model in a pool cannot set {' or '.join(own)}: set them on the pool {self.pool!r}")
        if self.pool is not None and self.engine.batch_invariant:
            raise ValueError(
                "a model in a pool cannot set engine.batch_invariant: it changes the matrix products of all models of "
                "the process; give the model its own replicas"
            )
        return self

    @model_validator(mode="after")
    def _versions_have_running_replicas(self) -> Self:
        if self.version is not None and (self.pool is not None or not self.autoscaling.min_replicas):
            raise ValueError(
                "a version needs replicas that always run: set autoscaling.min_replicas to at least 1, and no pool"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The id, then the aliases."""
        return (self.id, *self.aliases)

    @property
    def deployment_name(self) -> str:
        """Name of the model's Serve deployment. It depends only on the model's id, so that YAML can refer to it."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", self.id)


class PoolConfig(Section):
    """Replicas shared by many rarely used models. Each replica loads models on demand."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=100)]
    """Name by which models refer to the pool in `models[].pool`."""

    models_per_replica: PositiveInt = 4
    """Maximum number of models that one replica keeps loaded; the least recently used model is unloaded first. The
    replica's memory must hold this many models, including the one being loaded."""

    spread_above_tokens: PositiveInt = 65_536
    """Limit of a replica's outstanding tokens. A model is loaded on another replica only while all replicas with the
    model exceed this limit. Raise it if models are reloaded too often; lower it if a popular model queues while other
    replicas are idle."""

    replica: ReplicaConfig = ReplicaConfig()
    """Resources of each replica."""

    autoscaling: AutoscalingConfig = AutoscalingConfig()
    """Number of replicas."""

    @property
    def deployment_name(self) -> str:
        """Name of the pool's Serve deployment."""
        return f"pool_{self.name}"
