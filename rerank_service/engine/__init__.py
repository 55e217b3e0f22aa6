"""Models on devices: tokenise -> pack -> forward -> pool -> logit. No Ray, no HTTP."""

from rerank_service.engine.build import load_engine
from rerank_service.engine.protocol import CacheCounts, EncodedPair, Engine, Truncate

__all__ = ["CacheCounts", "EncodedPair", "Engine", "Truncate", "load_engine"]
