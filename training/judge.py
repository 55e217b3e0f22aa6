"""Measures nDCG@10 of finished candidates on held-out sets, query by query, and differences from the default.

Candidates must be final, since these figures must not influence any choice. The README lists the exceptions.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rerank_service.tools.evaluation.evaluate import Task
from rerank_service.tools.evaluation.first_stage import Scores
from rerank_service.tools.evaluation.measures import NDCG, measure
from rerank_service.tools.evaluation.scoring import by_query
from training.model import Scorer
from training.ranking import buckets, pair_logits

__all__ = ["ndcg_by_query", "paired_difference"]

_SAMPLES = 10_000
_SEED = 0

PerQuery = NDArray[np.float64]


def ndcg_by_query(models: Mapping[str, Scorer], task: Task) -> dict[str, PerQuery]:
    """nDCG@10 of each query by model, in the order of the task's queries. All models share their frozen layers."""
    collection = task.collection
    is_cross = any(model.num_cross_layers for model in models.values())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        scores = (_read_together if is_cross else _read_apart)(models, task)
    return {name: measure(collection.relevance, task.candidates, of_model)[NDCG] for name, of_model in scores.items()}


def _read_together(models: Mapping[str, Scorer], task: Task) -> dict[str, Scores]:
    """Scores by a cross-encoder, which encodes every passage again for every query."""
    owners = [row for row, chosen in enumerate(task.candidates.values()) for _ in chosen]
    passages = [task.collection.passages[passage] for chosen in task.candidates.values() for passage in chosen]
    queries = [task.collection.queries[query] for query in task.candidates]
    scores = {}
    for name, model in models.items():
        encoded = model.encode(model.tokenise(queries))
        logits = pair_logits(model, encoded, model.tokenise(passages), owners).tolist()
        scores[name] = by_query(logits, task.candidates)
    return scores


def _read_apart(models: Mapping[str, Scorer], task: Task) -> dict[str, Scores]:
    """Scores by late interaction, which encodes each passage once for all queries that rank it."""
    first = next(iter(models.values()))
    queries = list(task.candidates)
    askers: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row, query in enumerate(queries):
        for position, passage in enumerate(task.candidates[query]):
            askers[passage].append((row, position))
    begun = first.begin(first.tokenise([task.collection.queries[query] for query in queries]))
    encoded = {name: model.finish(begun) for name, model in models.items()}
    scores = {name: {query: [0.0] * len(task.candidates[query]) for query in queries} for name in models}
    passages = list(askers)
    texts = first.tokenise([task.collection.passages[passage] for passage in passages])
    for rows in buckets(texts):
        begun = first.begin([texts[row] for row in rows])
        for name, model in models.items():
            batch = model.finish(begun)
            for place, row in enumerate(rows):
                asking = askers[passages[row]]
                of_asking = encoded[name][torch.tensor([asker for asker, _ in asking])]
                logits = model.head.all_pairs(of_asking, batch[place : place + 1])[:, 0].tolist()
                for (asker, position), logit in zip(asking, logits, strict=True):
                    scores[name][queries[asker]][position] = logit
    return scores


def paired_difference(candidate: Mapping[str, PerQuery], default: Mapping[str, PerQuery]) -> dict[str, Any]:
    """Mean difference over the queries of a set, averaged over the sets, with its 95% bootstrap interval.

    Queries are resampled within each set, with the same sample for both models.
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
