"""Computes logits of many pairs with a `Scorer`, in batches of similar length."""

from collections.abc import Iterator, Sequence

import torch

from training.model import Encoded, Scorer

__all__ = ["buckets", "pair_logits", "pool_logits"]

_TEXTS_PER_BATCH = 16


def buckets(texts: Sequence[list[int]], size: int = _TEXTS_PER_BATCH) -> Iterator[list[int]]:
    """Yields the texts' indices in batches of similar length, to reduce padding."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def pool_logits(model: Scorer, queries: Encoded, texts: Sequence[list[int]]) -> torch.Tensor:
    """Logits `[Q, P]` of every query with every passage, by late interaction."""
    parts, order = [], []
    for rows in buckets(texts):
        parts.append(model.head.all_pairs(queries, model.encode([texts[row] for row in rows])))
        order += rows
    return torch.cat(parts, 1)[:, torch.tensor(order).argsort()]


def pair_logits(model: Scorer, queries: Encoded, texts: Sequence[list[int]], owners: Sequence[int]) -> torch.Tensor:
    """Logits `[P]` of each passage with the query whose index is in `owners`; cross-encoders encode both together."""
    parts, order = [], []
    for rows in buckets(texts):
        asked = queries[torch.tensor([owners[row] for row in rows])]
        context = asked if model.num_cross_layers else None
        parts.append(model.head.own_pairs(asked, model.encode([texts[row] for row in rows], context)))
        order += rows
    return torch.cat(parts)[torch.tensor(order).argsort()]
