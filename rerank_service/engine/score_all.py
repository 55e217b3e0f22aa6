"""Scores any number of pairs, for callers without a scheduler: the command line and the benchmarks."""

from collections.abc import Sequence

from rerank_service.engine.pack import token_budget_batches
from rerank_service.engine.protocol import Engine, PairT

__all__ = ["score_all"]


def score_all(engine: Engine[PairT], pairs: Sequence[PairT], max_batch_tokens: int) -> list[float]:
    """Logits `[B]` in the order of `pairs`, scored in batches of at most `max_batch_tokens`."""
    logits = [0.0] * len(pairs)
    for batch in token_budget_batches([pair.num_tokens for pair in pairs], max_batch_tokens):
        for index, logit in zip(batch, engine.score([pairs[index] for index in batch]), strict=True):
            logits[index] = logit
    return logits
