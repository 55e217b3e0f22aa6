"""nDCG@10 of finished candidates on held-out sets, query by query, and its difference from the default's.

Looked at once, for candidates named beforehand: nothing is chosen by these figures.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rerank_service.evaluation.evaluate import Task
from rerank_service.evaluation.measures import NDCG, measure
from training.model import Encoded, Scorer
from training.ranking import buckets, pair_logits

__all__ = ["ndcg_by_query", "paired_difference"]

_SAMPLES = 10_000
_SEED = 0

PerQuery = NDArray[np.float64]


def ndcg_by_query(model: Scorer, task: Task) -> PerQuery:
    """In the order of the task's candidates."""
    collection = task.collection
    queries = list(task.candidates)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        encoded = model.encode(model.tokenise([collection.queries[query] for query in queries]))
        score = _read_together if model.num_cross_layers else _read_apart
        scores = score(model, encoded, task, queries)
    values: PerQuery = measure(collection.relevance, task.candidates, scores)[NDCG]
    return values


def _read_together(model: Scorer, encoded: Encoded, task: Task, queries: Sequence[str]) -> dict[str, list[float]]:
    owners = [row for row, query in enumerate(queries) for _ in task.candidates[query]]
    passages = [task.collection.passages[passage] for query in queries for passage in task.candidates[query]]
    logits = iter(pair_logits(model, encoded, model.tokenise(passages), owners).tolist())
    return {query: list(islice(logits, len(task.candidates[query]))) for query in queries}


def _read_apart(model: Scorer, encoded: Encoded, task: Task, queries: Sequence[str]) -> dict[str, list[float]]:
    """Each passage is encoded once for all queries that have it as a candidate."""
    askers: dict[str, list[tuple[int, int]]] = defaultdict(list)
    scores = {query: [0.0] * len(task.candidates[query]) for query in queries}
    for row, query in enumerate(queries):
        for position, passage in enumerate(task.candidates[query]):
            askers[passage].append((row, position))
    passages = list(askers)
    texts = model.tokenise([task.collection.passages[passage] for passage in passages])
    for rows in buckets(texts):
        batch = model.encode([texts[row] for row in rows])
        for place, row in enumerate(rows):
            asking = askers[passages[row]]
            of_asking = encoded[torch.tensor([asker for asker, _ in asking])]
            logits = model.head.all_pairs(of_asking, batch[place : place + 1])[:, 0].tolist()
            for (asker, position), logit in zip(asking, logits, strict=True):
                scores[queries[asker]][position] = logit
    return scores


def paired_difference(candidate: Mapping[str, PerQuery], default: Mapping[str, PerQuery]) -> dict[str, Any]:
    """Mean over the sets of the mean difference over their queries, with its 95% bootstrap interval.

    Queries are drawn anew within each set, the same ones for both models.
    """
    generator = np.random.default_rng(_SEED)
    differences = {name: candidate[name] - default[name] for name in candidate}
    drawn = [generator.choice(values, (_SAMPLES, len(values))).mean(1) for values in differences.values()]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return {
        "sets": {name: float(values.mean()) for name, values in differences.items()},
        "mean": float(np.mean([values.mean() for values in differences.values()])),
        "low": float(low),
        "high": float(high),
    }
