"""Published rerankers, and whether a machine can run them."""

from rerank_service.tools.catalogue.models import CATALOGUE, KnownModel, known_model

__all__ = ["CATALOGUE", "KnownModel", "known_model"]
