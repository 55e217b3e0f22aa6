"""Models on devices: tokenise -> pack -> forward -> pool -> logit. No Ray, no HTTP."""

from rerank_service.engine.build import load_engine
from rerank_service.engine.protocol import EncodedPair, Engine, Truncate

__all__ = ["EncodedPair", "Engine", "Truncate", "load_engine"]
