"""nDCG@10 and cost of every cascade, computed from the scores of its stages."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rerank_service.messages import rank_by_logit
from rerank_service.tools.evaluation.evaluate import Task
from rerank_service.tools.evaluation.measures import NDCG, measure

__all__ = ["BM25", "KEEPS", "WHOLE", "SetScores", "cascade_scores", "macro_row", "measure_set"]

WHOLE, BM25 = "6 layers", "BM25"
KEEPS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Shares of the candidates that go on to the whole model."""
_SAMPLES, _SEED = 2_000, 0

Values = NDArray[np.float64]
"""nDCG@10 of each query."""


class SetScores(NamedTuple):
    """Scores of all pairs of a set, by query, for each model and for BM25."""

    task: Task
    scores: Mapping[str, Mapping[str, Sequence[float]]]


def cascade_scores(first: Sequence[float], whole: Sequence[float], keep: float) -> list[float]:
    """Scores that rank one query's passages as a cascade does: the best by `first` in the order of `whole`, then all
    others in the order of `first`."""
    order = rank_by_logit(first)
    num_kept = math.ceil(keep * len(first))
    again = rank_by_logit([whole[index] for index in order[:num_kept]])
    ranked = [order[place] for place in again] + order[num_kept:]
    scores = [0.0] * len(first)
    for rank, index in enumerate(ranked):
        scores[index] = float(-rank)
    return scores


def measure_set(one: SetScores) -> dict[str, Values]:
    """nDCG@10 of each single scorer, by its name, and of each cascade, by `FIRST, KEEP`."""

    def ndcg(scores: Mapping[str, Sequence[float]]) -> Values:
        lists = {query_id: list(values) for query_id, values in scores.items()}
        return measure(one.task.collection.relevance, one.task.candidates, lists)[NDCG]

    whole = one.scores[WHOLE]
    found = {name: ndcg(scores) for name, scores in one.scores.items()}
    for name, scores in one.scores.items():
        if name != WHOLE:
            for keep in KEEPS:
                ranked = {query: cascade_scores(first, whole[query], keep) for query, first in scores.items()}
                found[f"{name}, {keep}"] = ndcg(ranked)
    return found


def macro_row(values: Sequence[Values], whole: Sequence[Values]) -> dict[str, Any]:
    """The mean over the sets, and its difference from the whole model with a 95% interval: queries are drawn anew
    within each set."""
    generator = np.random.default_rng(_SEED)
    differences = [one - other for one, other in zip(values, whole, strict=True)]
    drawn = [one[generator.integers(len(one), size=(_SAMPLES, len(one)))].mean(axis=1) for one in differences]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return {
        "ndcg@10": float(np.mean([one.mean() for one in values])),
        "by_set": [float(one.mean()) for one in values],
        "difference": float(np.mean([one.mean() for one in differences])),
        "difference_interval": [float(low), float(high)],
    }
