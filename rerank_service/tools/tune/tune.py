"""Tunes a model: splits the queries, trains, chooses on the dev queries, writes a checkpoint, and judges it once.

The output folder holds the state of an unfinished run in `.tuning`; the same command then continues the run.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rerank_service import __version__
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.checkpoints.verification import Progress, no_progress
from rerank_service.config import CheckpointConfig, ModelConfig
from rerank_service.errors import BatchError
from rerank_service.tools.evaluation.collection import Collection
from rerank_service.tools.evaluation.evaluate import Task, prepare_task
from rerank_service.tools.evaluation.first_stage import Bm25
from rerank_service.tools.tune.checkpoint import changed_tensors, write_checkpoint
from rerank_service.tools.tune.lists import ListSampler
from rerank_service.tools.tune.model import Method, TrainableModel
from rerank_service.tools.tune.split import Split, split_queries
from rerank_service.tools.tune.train import Schedule, train
from rerank_service.tools.tune.verdict import Verdict, compare, counted, ndcg

__all__ = ["REPORT", "TuneOptions", "tune"]

REPORT = "tuning.json"
"""File in the output folder with the settings, figures and verdict of a finished run."""
_STATE = ".tuning"
_SHARES = (0.0, 0.5, 1.0)
_EPOCHS, _MOST_STEPS = 3, 400
_DEV_TOP_K = 20
"""Candidates of a dev query, which is ranked once for each share."""
_RATES: dict[Method, float] = {"lora": 2e-3, "head": 2e-3}


@dataclass(frozen=True)
class TuneOptions:
    """Settings of a run. Null: a value that suits the model and the number of queries."""

    method: Method = "lora"
    rank: int = 16
    num_steps: int | None = None
    rate: float | None = None
    num_queries: int = 8
    """Queries per step."""
    num_passages: int | None = None
    """Passages in a list."""
    num_mined: int = 20
    top_k: int = 50
    """Candidates of a held-out query."""
    seed: int = 0


def tune(
    model: ModelConfig,
    train_on: Collection,
    dev: Collection | None,
    held_out: Sequence[Collection],
    output: Path,
    options: TuneOptions,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Returns the report, and writes it to `output` with the tuned checkpoint.

    The checkpoint is missing if no mixture of old and new weights is better on the dev queries; the held-out queries
    then stay unused. A finished run is not repeated: its report is returned. Raises `BatchError` and `CheckpointError`.
    """
    run = _fingerprint(model, [train_on, *([dev] if dev else []), *held_out], options)
    if (output / REPORT).is_file():
        report: dict[str, Any] = json.loads((output / REPORT).read_text(encoding="utf-8"))
        _refuse_other_run(report["run"], run, output)
        return report
    state = _open_state(output, run)
    split = split_queries(train_on, dev, held_out, options.seed)
    trained, losses = _train(model, split, options, state / "state.safetensors", progress)
    on_dev = _judge_shares(trained, prepare_task(split.dev, _DEV_TOP_K), progress)
    share = max(on_dev, key=lambda one: (on_dev[one], -one))  # the smallest change among equals
    verdict = None
    if share > 0:
        with trained.mixed(share):
            changes = trained.changes()
        del trained
        write_checkpoint(resolve_checkpoint(model.checkpoint), changes, output)
        verdict = compare(
            model, _tuned(model, output), [prepare_task(one, options.top_k) for one in split.held_out], progress
        )
    report = {
        "run": run,
        "num_train_queries": len(split.train.queries),
        "num_dev_queries": len(split.dev.queries),
        "num_left_out": split.num_left_out,
        "num_steps": len(losses),
        "loss": [_mean(losses[: max(1, len(losses) // 10)]), _mean(losses[-max(1, len(losses) // 10) :])],
        "dev": {str(one): value for one, value in on_dev.items()},
        "share": share,
        "held_out": None if verdict is None else _of_verdict(verdict),
        "is_better": verdict is not None and verdict.is_better,
    }
    partial = state / REPORT
    partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    partial.replace(output / REPORT)
    shutil.rmtree(state)
    return report


def _train(
    model: ModelConfig, split: Split, options: TuneOptions, state: Path, progress: Progress
) -> tuple[TrainableModel, list[float]]:
    trainable = TrainableModel(model, options.method, options.rank, options.seed, progress)
    changed_tensors(resolve_checkpoint(model.checkpoint), trainable.changed)  # before hours of training
    sampler = ListSampler(
        split.train,
        Bm25(split.train.passages),
        split.unseen,
        num_passages=options.num_passages or trainable.list_size,
        num_mined=options.num_mined,
        seed=options.seed,
    )
    enough = math.ceil(_EPOCHS * len(split.train.queries) / options.num_queries)
    schedule = Schedule(options.num_steps or min(enough, _MOST_STEPS), options.rate or _RATES[options.method])
    losses = train(
        trainable,
        lambda step: sampler.lists(step, options.num_queries),
        schedule,
        state,
        lambda done, total: progress("training", done, total),
    )
    return trainable, losses


def _judge_shares(trained: TrainableModel, task: Task, progress: Progress) -> dict[float, float]:
    """Mean nDCG@10 on the dev queries for each share of the learned change."""
    found: dict[float, float] = {}
    for share in _SHARES:
        before, total = len(found) * task.num_pairs, len(_SHARES) * task.num_pairs
        with trained.mixed(share), trained.engine.caches_off():
            values = ndcg(trained.engine, task, counted(progress, "dev", before, total))
        found[share] = float(values.mean())
    return found


def _tuned(model: ModelConfig, output: Path) -> ModelConfig:
    """The settings of the original with the tuned files."""
    checkpoint = CheckpointConfig(source=str(output.absolute()))
    return model.model_copy(update={"checkpoint": checkpoint})


def _open_state(output: Path, run: dict[str, Any]) -> Path:
    """The folder of the run's state. Raises `BatchError` if the output folder has anything else."""
    state, record = output / _STATE, output / _STATE / "run.json"
    if record.is_file():
        _refuse_other_run(json.loads(record.read_text(encoding="utf-8")), run, output)
        return state
    if output.exists() and any(output.iterdir()):
        raise BatchError(f"{output} is not empty: give a new folder as --output")
    state.mkdir(parents=True)
    record.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    return state


def _refuse_other_run(found: dict[str, Any], run: dict[str, Any], output: Path) -> None:
    differing = [name for name in run if found.get(name) != run[name]]
    if differing:
        raise BatchError(
            f"{output} has a run with other settings ({', '.join(differing)}): repeat the settings of that run, or "
            "give a new folder as --output"
        )


def _fingerprint(model: ModelConfig, collections: Sequence[Collection], options: TuneOptions) -> dict[str, Any]:
    """All that the result depends on, apart from the machine."""
    digest = hashlib.sha256()
    for one in collections:
        digest.update(json.dumps([one.passages, one.queries, one.relevance], sort_keys=True).encode())
    checkpoint = model.checkpoint
    return {
        "version": __version__,
        "model": model.id,
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        **asdict(options),
        "judgements": f"sha256:{digest.hexdigest()}",
    }


def _of_verdict(verdict: Verdict) -> dict[str, Any]:
    sets = [one._asdict() | {"difference": one.difference._asdict()} for one in verdict.sets]
    return {"sets": sets, "difference": verdict.difference._asdict()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
