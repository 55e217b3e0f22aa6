"""nDCG, reciprocal rank and recall, computed by trec_eval (pytrec_eval), with confidence intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytrec_eval
from numpy.typing import NDArray

from rerank_service.messages import rank_by_logit
from rerank_service.tools.evaluation.first_stage import Candidates, Scores

__all__ = ["NDCG", "RECIPROCAL_RANK", "Figure", "PerQuery", "figure", "measure", "measure_names"]

CUTOFF = 10
NDCG = f"ndcg@{CUTOFF}"
RECIPROCAL_RANK = f"mrr@{CUTOFF}"

_SAMPLES = 2_000
_SEED = 0

PerQuery = dict[str, NDArray[np.float64]]
"""Values of each measure by its name, one value per query."""


class Figure(NamedTuple):
    """Mean over the queries, with its 95% confidence interval."""

    mean: float
    low: float
    high: float


def measure_names(recall_at: Sequence[int]) -> list[str]:
    """Names of the measures, in display order."""
    return [NDCG, RECIPROCAL_RANK, *(f"recall@{k}" for k in recall_at)]


def measure(
    relevance: dict[str, dict[str, int]], candidates: Candidates, scores: Scores, recall_at: Sequence[int] = ()
) -> PerQuery:
    """Computes the measures of every query in `candidates`. Passages with equal scores keep the order of the
    candidates; a relevant passage that is not a candidate counts as not found.

    trec_eval breaks ties by passage id and has no cutoff for the reciprocal rank. It therefore receives ranks instead
    of scores and, for the reciprocal rank, only the first ten passages.
    """
    judged = {query_id: relevance[query_id] for query_id in candidates}
    runs = {query_id: _ranked(chosen, scores[query_id]) for query_id, chosen in candidates.items()}
    names = {f"ndcg_cut_{CUTOFF}": NDCG} | {f"recall_{k}": f"recall@{k}" for k in recall_at}
    rows = pytrec_eval.RelevanceEvaluator(judged, set(names)).evaluate(runs)
    top = {query_id: dict(list(run.items())[:CUTOFF]) for query_id, run in runs.items()}
    first = pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}).evaluate(top)
    values = {name: _column(rows, theirs, candidates) for theirs, name in names.items()}
    values[RECIPROCAL_RANK] = _column(first, "recip_rank", candidates)
    return {name: values[name] for name in measure_names(recall_at)}


def figure(values: NDArray[np.float64]) -> Figure:
    """Mean, with a percentile bootstrap interval over the queries; the seed is fixed."""
    generator = np.random.default_rng(_SEED)
    means = [generator.choice(values, len(values)).mean() for _ in range(_SAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(float(values.mean()), float(low), float(high))


def _ranked(chosen: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Passages, best first, with descending integers as scores; the last passage has 1."""
    return {chosen[index]: float(len(chosen) - rank) for rank, index in enumerate(rank_by_logit(scores))}


def _column(rows: dict[str, dict[str, float]], name: str, queries: Candidates) -> NDArray[np.float64]:
    """Values of one measure. Queries without candidates, which trec_eval omits, have the value 0."""
    return np.array([rows.get(query_id, {}).get(name, 0.0) for query_id in queries])
