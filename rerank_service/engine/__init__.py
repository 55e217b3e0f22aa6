"""Models on devices: tokenise -> pack -> forward -> pool -> logit. No Ray, no HTTP."""

from typing import Any

from rerank_service.config import ModelConfig
from rerank_service.engine.protocol import CacheCounts, DeviceFacts, EncodedPair, Engine, TokenSpan, Truncate

__all__ = ["CacheCounts", "DeviceFacts", "EncodedPair", "Engine", "TokenSpan", "Truncate", "load_engine"]


def load_engine(model: ModelConfig, num_cpus: float | None = None) -> Engine[Any]:
    """What `build.load_engine` does; torch and transformers, which take seconds, are imported by the first call."""
    from rerank_service.engine import build

    return build.load_engine(model, num_cpus)
