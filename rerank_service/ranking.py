"""From logits to an order. Pure."""

from collections.abc import Sequence

__all__ = ["rank_by_logit"]


def rank_by_logit(logits: Sequence[float]) -> list[int]:
    """Indices by logit, highest first; equal logits by ascending index."""
    return sorted(range(len(logits)), key=lambda index: -logits[index])  # sorted() is stable
