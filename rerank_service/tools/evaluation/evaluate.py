"""Compares models on a collection: ranking quality and speed of each, on the same candidates."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rerank_service.checkpoints.verification import Progress, no_progress
from rerank_service.config import ModelConfig
from rerank_service.engine import load_engine
from rerank_service.messages import PassageWindows
from rerank_service.tools.evaluation.collection import Collection
from rerank_service.tools.evaluation.first_stage import Bm25, choose_candidates, read_run
from rerank_service.tools.evaluation.measures import Figure, figure, measure
from rerank_service.tools.evaluation.scoring import score_candidates

__all__ = ["Evaluation", "ModelFigures", "Task", "evaluate", "prepare_task"]


@dataclass(frozen=True)
class Task:
    """Queries and candidates that every compared model ranks."""

    collection: Collection
    candidates: dict[str, list[str]]
    first_stage: str
    first_stage_scores: dict[str, list[float]]
    chosen_by: str
    """Description of how the candidates were chosen."""

    @property
    def num_pairs(self) -> int:
        return sum(map(len, self.candidates.values()))

    @property
    def found(self) -> float:
        """Share of the queries that have a relevant candidate: an upper bound for every measure."""
        hits = (
            any(self.collection.relevance[query_id].get(passage_id, 0) > 0 for passage_id in chosen)
            for query_id, chosen in self.candidates.items()
        )
        return sum(hits) / len(self.candidates)


@dataclass(frozen=True)
class ModelFigures:
    """One row of the table."""

    model: str
    engine: str | None
    """Kind, device and precision; null for the first stage."""
    quality: dict[str, Figure]
    pairs_per_s: float | None
    """Throughput on this machine, including tokenising; null for the first stage. All queries are scored
    together, so a late-interaction engine encodes each passage once, even if several queries share it."""
    truncated_pairs: float
    """Share of the pairs that are longer than the window."""
    unscored_pairs: float
    """Share of the pairs whose query fills the window, so no token of the passage was scored."""


@dataclass(frozen=True)
class Evaluation:
    """Result of a comparison."""

    collection: str
    num_queries: int
    num_passages: int
    num_pairs: int
    candidates: str
    queries_with_a_relevant_candidate: float
    models: tuple[ModelFigures, ...]


def prepare_task(collection: Collection, top_k: int, run: Path | None = None) -> Task:
    """Chooses candidates: `run`'s passages; else the judged passages, if each query has several; else BM25's best."""
    if run is not None:
        candidates, scores = read_run(run, collection, top_k)
        return Task(collection, candidates, run.name, scores, f"top {top_k} of {run.name}")
    candidates, scores = choose_candidates(collection, Bm25(collection.passages), top_k)
    return Task(
        collection, candidates, "BM25", scores, "judged" if collection.brings_candidates else f"BM25 top {top_k}"
    )


def evaluate(
    task: Task,
    models: Sequence[ModelConfig],
    recall_at: Sequence[int],
    progress: Progress = no_progress,
    windows: PassageWindows | None = None,
) -> Evaluation:
    """Figures of the first stage and of each model. `windows` defines how to split long passages.

    Raises `CheckpointError`, and `BatchError` for a logit that is not finite.
    """
    collection = task.collection
    first = measure(collection.relevance, task.candidates, task.first_stage_scores, recall_at)
    rows = [ModelFigures(task.first_stage, None, {name: figure(row) for name, row in first.items()}, None, 0.0, 0.0)]
    rows += [_evaluate_model(task, model, recall_at, progress, windows) for model in models]
    return Evaluation(
        collection.name,
        len(task.candidates),
        len(collection.passages),
        task.num_pairs,
        task.chosen_by,
        task.found,
        tuple(rows),
    )


def _evaluate_model(
    task: Task, model: ModelConfig, recall_at: Sequence[int], progress: Progress, windows: PassageWindows | None
) -> ModelFigures:
    progress(f"loading {model.id}", 0, 1)
    engine = load_engine(model)
    started = time.perf_counter()
    batch_tokens, on_scored = model.batching.max_batch_tokens, partial(progress, model.id)
    passages, scores = score_candidates(engine, task.collection, task.candidates, windows, batch_tokens, on_scored)
    elapsed_s = time.perf_counter() - started
    values = measure(task.collection.relevance, task.candidates, scores, recall_at)
    return ModelFigures(
        model.id,
        engine.description,
        {name: figure(row) for name, row in values.items()},
        task.num_pairs / elapsed_s,
        sum(passages.is_truncated) / task.num_pairs,
        sum(passages.is_unscored) / task.num_pairs,
    )
