"""From logits to an order, and what a ranking is. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Ranked", "merged", "rank_by_logit"]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A request's answer and what it took."""

    order: list[int]
    """Passage indices, most relevant first."""
    logits: list[float]
    """One a passage, in the request's order."""
    num_tokens: int
    num_truncated: int
    """Passages of which a part, or a part of the query beside them, was not scored; those in `num_unscored` too."""
    num_shards: int
    tokenise_s: float
    queue_s: float
    """Each of these is the slowest shard's."""
    forward_s: float
    total_s: float
    num_unscored: int = 0
    """Passages of which the window left no token: their logits say nothing about them."""


def rank_by_logit(logits: Sequence[float]) -> list[int]:
    """Indices by logit, highest first; equal logits by ascending index."""
    return sorted(range(len(logits)), key=lambda index: -logits[index])  # sorted() is stable


def merged(rankings: Sequence[Ranked]) -> Ranked:
    """What a request of several questions took, ranked side by side; of one, the same."""
    if len(rankings) == 1:
        return rankings[0]
    logits = [logit for ranked in rankings for logit in ranked.logits]
    return Ranked(
        order=rank_by_logit(logits),
        logits=logits,
        num_tokens=sum(ranked.num_tokens for ranked in rankings),
        num_truncated=sum(ranked.num_truncated for ranked in rankings),
        num_shards=sum(ranked.num_shards for ranked in rankings),
        tokenise_s=max(ranked.tokenise_s for ranked in rankings),
        queue_s=max(ranked.queue_s for ranked in rankings),
        forward_s=max(ranked.forward_s for ranked in rankings),
        total_s=max(ranked.total_s for ranked in rankings),
        num_unscored=sum(ranked.num_unscored for ranked in rankings),
    )
