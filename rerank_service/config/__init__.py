"""Defines every setting of the service with its default, documentation and validation, and loads configurations.

The attributes' docstrings become the documentation and the descriptions in the JSON schema. This package must not
import Ray, torch or HTTP: the command line, the engine and the head node of a cluster all read it.
"""

from rerank_service.config.application import RerankConfig
from rerank_service.config.cascade import CascadeConfig, Keep, MarginConfig, StageConfig
from rerank_service.config.checkpoint import CheckpointConfig
from rerank_service.config.engine import (
    Device,
    Dtype,
    EngineConfig,
    EngineKind,
    FlashAttention,
    LateInteractionHead,
    Pooling,
    SpecialTokens,
    YesNoPrompt,
)
from rerank_service.config.loading import (
    APP_IMPORT_PATH,
    MODEL_IMPORT_PATH,
    load_config,
    parse_config,
    parse_model,
    parse_serve_config,
)
from rerank_service.config.model import ModelConfig, PoolConfig
from rerank_service.config.replica import (
    AutoscalingConfig,
    BatchingConfig,
    ReplicaConfig,
    default_batch_tokens,
    default_min_batch_tokens,
)
from rerank_service.config.section import plain_message, readable_problems, unknown_setting, without_echoes
from rerank_service.config.service import (
    AuthConfig,
    DialectName,
    IngressConfig,
    LimitsConfig,
    LogConfig,
    PathConfig,
    PrivateRoute,
    RankingPath,
    RateLimitConfig,
    ServiceConfig,
    TracingConfig,
)
from rerank_service.config.version import VersionConfig

__all__ = [
    "APP_IMPORT_PATH",
    "MODEL_IMPORT_PATH",
    "AuthConfig",
    "AutoscalingConfig",
    "BatchingConfig",
    "CascadeConfig",
    "CheckpointConfig",
    "Device",
    "DialectName",
    "Dtype",
    "EngineConfig",
    "EngineKind",
    "FlashAttention",
    "IngressConfig",
    "Keep",
    "LateInteractionHead",
    "LimitsConfig",
    "LogConfig",
    "MarginConfig",
    "ModelConfig",
    "PathConfig",
    "PoolConfig",
    "Pooling",
    "PrivateRoute",
    "RankingPath",
    "RateLimitConfig",
    "ReplicaConfig",
    "RerankConfig",
    "ServiceConfig",
    "SpecialTokens",
    "StageConfig",
    "TracingConfig",
    "VersionConfig",
    "YesNoPrompt",
    "default_batch_tokens",
    "default_min_batch_tokens",
    "load_config",
    "parse_config",
    "parse_model",
    "parse_serve_config",
    "plain_message",
    "readable_problems",
    "unknown_setting",
    "without_echoes",
]
