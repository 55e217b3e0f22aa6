"""What is known of published rerankers, and which of them a machine can run. No torch, no network, no files."""

from rerank_service.tools.catalogue.models import CATALOGUE, KnownModel, known_model

__all__ = ["CATALOGUE", "KnownModel", "known_model"]
