"""Compares the tuned model with the original on held-out queries."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rerank_service.checkpoints.verification import Progress, no_progress
from rerank_service.config import ModelConfig
from rerank_service.engine import load_engine
from rerank_service.engine.protocol import Engine
from rerank_service.engine.score_all import OnScored
from rerank_service.tools.evaluation.evaluate import Task
from rerank_service.tools.evaluation.measures import NDCG, Figure, measure
from rerank_service.tools.evaluation.scoring import score_candidates

__all__ = ["SetVerdict", "Verdict", "compare", "counted", "ndcg", "paired_difference"]

_SAMPLES = 10_000
_SEED = 0

PerQuery = NDArray[np.float64]


class SetVerdict(NamedTuple):
    """nDCG@10 of both models on one set of queries."""

    name: str
    num_queries: int
    candidates: str
    before: float
    after: float
    difference: Figure


class Verdict(NamedTuple):
    """Whether the tuned model ranks better."""

    sets: tuple[SetVerdict, ...]
    difference: Figure
    """Mean over the sets, which count equally."""

    @property
    def is_better(self) -> bool:
        """Whether the whole 95% interval is above 0."""
        return self.difference.low > 0


def compare(
    original: ModelConfig, tuned: ModelConfig, tasks: Sequence[Task], progress: Progress = no_progress
) -> Verdict:
    """nDCG@10 of both models on the tasks, each model as it is served. Raises `CheckpointError` and `BatchError`."""
    values: list[list[PerQuery]] = []
    total = sum(task.num_pairs for task in tasks)
    for model, stage in ((original, "held-out, before"), (tuned, "held-out, after")):
        engine, done = load_engine(model), 0
        values.append([])
        for task in tasks:
            values[-1].append(ndcg(engine, task, counted(progress, stage, done, total)))
            done += task.num_pairs
        del engine  # both models may not fit in memory together
    differences = [after - before for before, after in zip(*values, strict=True)]
    sets = tuple(
        SetVerdict(
            task.collection.name,
            len(before),
            task.chosen_by,
            float(before.mean()),
            float((before + change).mean()),
            paired_difference([change]),
        )
        for task, before, change in zip(tasks, values[0], differences, strict=True)
    )
    return Verdict(sets, paired_difference(differences))


def counted(progress: Progress, stage: str, before: int, total: int) -> OnScored:
    """Reports the pairs scored, added to `before`, out of `total`."""
    return lambda done, _: progress(stage, before + done, total)


def ndcg(engine: Engine[Any], task: Task, on_scored: OnScored) -> PerQuery:
    """nDCG@10 of each query of a task."""
    _, scores = score_candidates(engine, task.collection, task.candidates, on_scored=on_scored)
    return measure(task.collection.relevance, task.candidates, scores)[NDCG]


def paired_difference(differences: Sequence[PerQuery]) -> Figure:
    """Mean of the sets' mean differences, with its 95% bootstrap interval. `differences` are after minus before, one
    array per set; the queries of each set are resampled."""
    generator = np.random.default_rng(_SEED)
    drawn = [generator.choice(values, (_SAMPLES, len(values))).mean(1) for values in differences]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return Figure(float(np.mean([values.mean() for values in differences])), float(low), float(high))
