"""Published rerankers, and which of them a machine can run."""

from rerank_service.tools.catalogue.models import CATALOGUE, KnownModel, known_model

__all__ = ["CATALOGUE", "KnownModel", "known_model"]
