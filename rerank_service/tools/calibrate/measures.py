"""How good probabilities are: log loss, Brier score, calibration error, and what thresholds keep.

The intervals are bootstrap intervals over queries, because the pairs of a query depend on each other.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rerank_service.tools.calibrate.pairs import JudgedPairs
from rerank_service.tools.evaluation.measures import Figure

__all__ = [
    "THRESHOLDS",
    "Bin",
    "Threshold",
    "calibration_error",
    "log_losses",
    "mean_over_queries",
    "measures_of",
    "reliability",
    "thresholds",
]

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_BINS = 10
_SAMPLES = 2_000
_SEED = 0
_LEAST = 1e-12
"""Probabilities are at least this far from 0 and 1 in the log loss, so that one pair cannot make it infinite."""

_Array = NDArray[np.float64]


class Bin(NamedTuple):
    """Pairs whose probabilities are in one of ten equal ranges."""

    num_pairs: int
    probability: float
    """Mean probability of the pairs."""
    relevant: float
    """Share of the pairs that are relevant."""


class Threshold(NamedTuple):
    """What remains if passages below a probability are left out."""

    probability: float
    precision: float | None
    """Share of the kept passages that are relevant; null if none is kept."""
    recall: float
    """Share of the relevant candidates that are kept."""
    kept_per_query: float
    """Mean number of kept passages."""
    empty_queries: float
    """Share of the queries without any kept passage."""


def log_losses(pairs: JudgedPairs, probabilities: _Array) -> _Array:
    """The log loss of each pair."""
    of_label = np.where(pairs.is_relevant, probabilities, 1 - probabilities)
    losses: _Array = -np.log(np.clip(of_label, _LEAST, 1))
    return losses


def mean_over_queries(pairs: JudgedPairs, values: _Array) -> Figure:
    """The mean of one value per pair, with its interval."""
    sums = np.stack([np.bincount(pairs.query, values), np.bincount(pairs.query)]).astype(np.float64)
    return _figure(sums, lambda total: total[0] / total[1])


def measures_of(pairs: JudgedPairs, probabilities: _Array) -> dict[str, Figure]:
    """Log loss, Brier score and expected calibration error; 0 is best."""
    squares = (probabilities - pairs.is_relevant) ** 2
    return {
        "log loss": mean_over_queries(pairs, log_losses(pairs, probabilities)),
        "Brier score": mean_over_queries(pairs, squares),
        "calibration error": calibration_error(pairs, probabilities),
    }


def calibration_error(pairs: JudgedPairs, probabilities: _Array) -> Figure:
    """Expected calibration error (Guo et al., arXiv 1706.04599): the distance between mean probability and share of
    relevant pairs in each of ten equal ranges, averaged over all pairs."""
    excess = probabilities - pairs.is_relevant
    cell = pairs.query * _BINS + _bin_numbers(probabilities)
    size = (int(pairs.query.max()) + 1) * _BINS
    by_bin = np.bincount(cell, excess, size).reshape(-1, _BINS).T
    sums = np.concatenate([by_bin, np.bincount(pairs.query)[None, :]])
    return _figure(sums, lambda total: np.abs(total[:_BINS]).sum(axis=0) / total[_BINS])


def reliability(pairs: JudgedPairs, probabilities: _Array) -> list[Bin]:
    """The ranges that have pairs."""
    numbers = _bin_numbers(probabilities)
    counts = np.bincount(numbers, minlength=_BINS)
    means = np.bincount(numbers, probabilities, _BINS) / np.maximum(counts, 1)
    shares = np.bincount(numbers, pairs.is_relevant, _BINS) / np.maximum(counts, 1)
    columns = zip(counts.tolist(), means.tolist(), shares.tolist(), strict=True)
    return [Bin(*row) for row in columns if row[0]]


def thresholds(pairs: JudgedPairs, probabilities: _Array, levels: Sequence[float] = THRESHOLDS) -> list[Threshold]:
    """What each threshold keeps."""
    rows = []
    for level in levels:
        is_kept = probabilities >= level
        num_kept, num_hits = int(is_kept.sum()), int((is_kept & pairs.is_relevant).sum())
        answered = len(np.unique(pairs.query[is_kept]))
        rows.append(
            Threshold(
                level,
                num_hits / num_kept if num_kept else None,
                num_hits / pairs.num_relevant,
                num_kept / pairs.num_queries,
                1 - answered / pairs.num_queries,
            )
        )
    return rows


def _bin_numbers(probabilities: _Array) -> NDArray[np.intp]:
    return np.minimum((probabilities * _BINS).astype(np.intp), _BINS - 1)


def _figure(sums: _Array, statistic: Callable[[_Array], _Array]) -> Figure:
    """A statistic of the totals over all queries, with a percentile bootstrap interval. `sums` is [rows, queries];
    `statistic` takes [rows, samples] and returns [samples]."""
    generator = np.random.default_rng(_SEED)
    used = sums[:, sums[-1] > 0]  # queries without pairs, in a part of a cross-validation
    num_queries = used.shape[1]
    counts = generator.multinomial(num_queries, np.full(num_queries, 1 / num_queries), _SAMPLES)
    low, high = np.quantile(statistic(used @ counts.T), [0.025, 0.975])
    return Figure(float(statistic(used.sum(axis=1, keepdims=True))[0]), float(low), float(high))
