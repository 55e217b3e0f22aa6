"""Calibrates a model on judged queries: scores the candidates, fits the map, and measures it on held-out queries."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from rerank_service import __version__
from rerank_service.checkpoints.verification import Progress, no_progress
from rerank_service.config import CalibrationConfig, ModelConfig, sigmoid
from rerank_service.engine import load_engine
from rerank_service.messages import PassageWindows
from rerank_service.tools.calibrate.fit import fit, held_out_probabilities
from rerank_service.tools.calibrate.measures import (
    Bin,
    Threshold,
    log_losses,
    mean_over_queries,
    measures_of,
    reliability,
    thresholds,
)
from rerank_service.tools.calibrate.pairs import JudgedPairs
from rerank_service.tools.evaluation.evaluate import Task
from rerank_service.tools.evaluation.measures import Figure
from rerank_service.tools.evaluation.scoring import score_candidates

__all__ = ["Calibrated", "calibrate", "calibrate_pairs", "score_task"]

_MAX_ORIGIN = 1000


@dataclass(frozen=True)
class Calibrated:
    """A map, and figures of the probabilities. The map of these figures was fitted without the pair's own query; the
    map in `calibration` was fitted in the same way with all queries."""

    method: str
    calibration: CalibrationConfig
    num_queries: int
    num_pairs: int
    num_relevant: int
    sigmoid: dict[str, Figure]
    """Measures of `sigmoid(logit)`."""
    calibrated: dict[str, Figure]
    """Measures of the calibrated probabilities."""
    gain: Figure
    """Log loss of `sigmoid(logit)` minus that of the calibrated probabilities."""
    thresholds: list[Threshold]
    sigmoid_bins: list[Bin]
    calibrated_bins: list[Bin]


def calibrate(
    model: ModelConfig,
    task: Task,
    method: str | None = None,
    min_grade: int = 1,
    windows: PassageWindows | None = None,
    progress: Progress = no_progress,
) -> Calibrated:
    """Scores the candidates of a task and calibrates the model. `method` is null or a name in `fit.METHODS`.

    Raises `CheckpointError`, and `BatchError` if the judgements are too few or the logits do not increase with
    relevance.
    """
    pairs, engine = score_task(model, task, min_grade, windows, progress)
    pairs.check()
    progress("fitting", 0, 1)
    result = calibrate_pairs(pairs, method)
    progress("fitting", 1, 1)
    loss = {name: row["log loss"].mean for name, row in (("sigmoid", result.sigmoid), ("map", result.calibrated))}
    origin = (
        f"rerank-service {__version__} calibrate {model.id}: {result.method}, {len(pairs)} pairs of "
        f"{result.num_queries} queries of {task.collection.name}, candidates {task.chosen_by}, {engine}; log loss on "
        f"held-out queries {loss['map']:.4f}, sigmoid {loss['sigmoid']:.4f}"
    )
    named = result.calibration.model_copy(update={"origin": origin[:_MAX_ORIGIN]})
    return Calibrated(**(vars(result) | {"calibration": named}))


def score_task(
    model: ModelConfig,
    task: Task,
    min_grade: int,
    windows: PassageWindows | None = None,
    progress: Progress = no_progress,
) -> tuple[JudgedPairs, str]:
    """The pairs of a task with their logits, and the description of the engine. Pairs of which no token was scored are
    left out, since their logits mean nothing. Raises `BatchError` if the judgements are too few."""
    JudgedPairs.unscored(task.collection, task.candidates, min_grade).check()  # before an hour of scoring
    progress(f"loading {model.id}", 0, 1)
    engine = load_engine(model)
    passages, scores = score_candidates(
        engine, task.collection, task.candidates, windows, model.batching.max_batch_tokens, partial(progress, model.id)
    )
    pairs = JudgedPairs.of(task.collection, task.candidates, scores, min_grade)
    return pairs.at(np.flatnonzero(~np.array(passages.is_unscored, np.bool_))), engine.description


def calibrate_pairs(pairs: JudgedPairs, method: str | None = None) -> Calibrated:
    """Fits the map and measures it. Raises `BatchError`."""
    fitted = fit(pairs, method)
    plain = np.fromiter(map(sigmoid, pairs.logits.tolist()), np.float64, len(pairs))
    held_out = held_out_probabilities(pairs, method)
    return Calibrated(
        method=fitted.method,
        calibration=fitted.calibration,
        num_queries=pairs.num_queries,
        num_pairs=len(pairs),
        num_relevant=pairs.num_relevant,
        sigmoid=measures_of(pairs, plain),
        calibrated=measures_of(pairs, held_out),
        gain=mean_over_queries(pairs, log_losses(pairs, plain) - log_losses(pairs, held_out)),
        thresholds=thresholds(pairs, held_out),
        sigmoid_bins=reliability(pairs, plain),
        calibrated_bins=reliability(pairs, held_out),
    )
