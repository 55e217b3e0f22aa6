from collections.abc import Sequence

from rerank_service.messages import Ranked, rank_by_logit

__all__ = ["merged"]


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
