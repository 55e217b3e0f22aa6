"""Scores every pair of every set once with each model, and measures the CPU time of a pair. Scores stay in files."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rerank_service.config import CheckpointConfig, Dtype, EngineConfig, EngineKind, ModelConfig
from rerank_service.engine.build import load_engine
from rerank_service.engine.protocol import Engine
from rerank_service.engine.score_all import score_passages
from rerank_service.messages import Fitting
from rerank_service.tools.evaluation.collection import read_collection
from rerank_service.tools.evaluation.evaluate import Task, prepare_task
from rerank_service.tools.evaluation.scoring import questions

__all__ = ["SETS", "StudySet", "cpu_ms_per_pair", "score_set", "study_task"]

_CACHE_BYTES = 4 * 1024**3
_BATCH_TOKENS = 16_384
_TIMED_QUERIES = 7


class StudySet(NamedTuple):
    """A collection, and the part of it that is ranked."""

    name: str
    top_k: int
    max_queries: int | None = None

    @property
    def label(self) -> str:
        return self.name if self.max_queries is None else f"{self.name}, {self.max_queries} queries"


SETS = (
    StudySet("noveleval", 20),
    StudySet("covid-faq", 100),
    StudySet("nq-heldout", 50, max_queries=60),
)
"""pubmedqa-l is left out: BM25 alone ranks it nearly as well as the whole model."""


def study_task(data: Path, one: StudySet) -> Task:
    """The queries of a set with their candidates."""
    return prepare_task(read_collection(data / one.name, max_queries=one.max_queries), one.top_k)


def score_set(task: Task, model: Path, file: Path) -> NDArray[np.float32]:
    """Logits of all pairs of a set, query by query. Reads them from `file`, if this exists; else writes the file.

    Raises `ValueError` if the file has the logits of other pairs.
    """
    if not file.exists():
        engine = _engine(model, _CACHE_BYTES)
        _, logits = score_passages(engine, questions(task.collection, task.candidates), Fitting(), _BATCH_TOKENS)
        np.save(file, np.array(logits, np.float32))
    scored: NDArray[np.float32] = np.load(file, allow_pickle=False)
    if len(scored) != task.num_pairs:
        raise ValueError(f"{file} has {len(scored)} logits for {task.num_pairs} pairs; delete it")
    return scored


def cpu_ms_per_pair(
    task: Task, models: Mapping[str, Path], rounds: int, progress: Callable[[str], None]
) -> dict[str, float]:
    """Median CPU time of each model's pairs without a passage cache, in milliseconds: tokenising and scoring.

    The models alternate, and each round scores the same queries, one after another, as a service does.
    """
    engines = {name: _engine(folder, None) for name, folder in models.items()}
    asked = list(questions(task.collection, task.candidates))[:_TIMED_QUERIES]
    num_pairs = sum(len(passages) for _, passages in asked)
    took: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, engine in engines.items():
            started = time.process_time()
            for question in asked:
                score_passages(engine, [question], Fitting(), _BATCH_TOKENS)
            took[name].append(1000 * (time.process_time() - started) / num_pairs)
        progress(", ".join(f"{name} {times[-1]:.2f} ms" for name, times in took.items()))
    return {name: statistics.median(times) for name, times in took.items()}


def _engine(folder: Path, cache_bytes: int | None) -> Engine[Any]:
    return load_engine(
        ModelConfig(
            id=folder.name,
            checkpoint=CheckpointConfig(source=str(folder)),
            engine=EngineConfig(
                kind=EngineKind.LATE_INTERACTION, dtype=Dtype.INT8, num_threads=1, passage_cache_bytes=cache_bytes
            ),
        )
    )
