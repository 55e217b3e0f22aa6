"""Scores chunks with a pool of Ray Data actors, on this machine or on a cluster.

Actors receive positions and return scored lines. Each actor reads the input itself, so every node needs the input
at the same path, as usual with Ray Data.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from rerank_service.errors import BatchError, CheckpointError
from rerank_service.replica.agreement import agree_in_job
from rerank_service.tools.batch.chunk_scorer import ChunkScorer, ScoredChunk, ScoringTask
from rerank_service.tools.batch.chunks import Chunk
from rerank_service.tools.batch.records import Position
from rerank_service.tools.deployment.ray_environment import set_ray_environment

__all__ = ["PoolOptions", "ray_session", "score_on_ray"]


@dataclass(frozen=True)
class PoolOptions:
    """Number of workers, and the resources that Ray reserves for each."""

    num_workers: int
    num_cpus: float
    num_gpus: float

    @classmethod
    def for_cluster(cls, task: ScoringTask, num_workers: int | None) -> "PoolOptions":
        """Options for the running Ray session. The default is one worker per GPU if the cluster has GPUs and the model
        may use them, else one worker per `replica.num_cpus` CPUs."""
        resources = ray.cluster_resources()
        replica = task.model.replica
        wants_gpu = task.model.engine.device != "cpu" and resources.get("GPU", 0) >= 1
        num_gpus = replica.num_gpus or float(wants_gpu)
        fit = [resources.get("CPU", 1) // replica.num_cpus] if replica.num_cpus else []
        fit += [resources.get("GPU", 0) / num_gpus] if num_gpus else []
        if num_gpus and not resources.get("GPU"):
            raise BatchError(
                f"model {task.model.id} is configured for {num_gpus:g} GPUs per replica, but the cluster has no GPU"
            )
        return cls(num_workers or max(1, int(min(fit, default=1))), replica.num_cpus, num_gpus)


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connects to the cluster at `address`, or starts a local Ray session and ends it afterwards. Never joins a local
    session that is already running."""
    set_ray_environment(os.environ)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # log lines would overwrite the progress bar
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with _silent_stderr():
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # a plain one, if the machine is so busy that Ray's processes take too long
        what = f"cannot connect to a Ray cluster at {address}" if address else "Ray cannot start here"
        raise BatchError(f"{what}: {error}") from None
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()


def score_on_ray(task: ScoringTask, chunks: Iterable[Chunk], pool: PoolOptions) -> Iterator[ScoredChunk]:
    """Scores chunks and yields each result when ready. Raises `BatchError` with the message of a worker's error."""
    rows = [_row(chunk) for chunk in chunks]
    scored = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _ScoreBatch,
        fn_constructor_kwargs={"task": task, "num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus},
        batch_size=1,
        compute=ActorPoolStrategy(size=min(pool.num_workers, len(rows))),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
    )
    for row in scored.iter_rows():
        if problem := row.pop("problem"):
            raise BatchError(problem)
        yield ScoredChunk(**row)


class _ScoreBatch:
    """Scores one chunk per call. An error is returned as text, because Ray Data would hide the type of an exception."""

    def __init__(self, task: ScoringTask, num_cpus: float, num_gpus: float) -> None:
        self._task = task
        self._num_cpus, self._num_gpus = num_cpus, num_gpus
        self._scorer: ChunkScorer | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        row = {name: int(values[0]) for name, values in batch.items()}
        position = Position(row.pop("offset"), row.pop("number"))
        problem = ""
        try:
            if self._scorer is None:
                agree = agree_in_job(self._task.model)
                self._scorer = ChunkScorer(self._task, self._num_cpus, self._num_gpus, agree)
            scored = self._scorer.score(Chunk(**row, start=position))
        except (BatchError, CheckpointError) as error:
            problem = str(error)
            scored = ScoredChunk(row["index"], b"", 0, 0, 0, "", 0)
        return {name: [value] for name, value in (scored._asdict() | {"problem": problem}).items()}


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discards stderr, to which Ray's C++ code prints its log level; errors are raised as exceptions."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _row(chunk: Chunk) -> dict[str, int]:
    position = chunk.start
    rest = {name: getattr(chunk, name) for name in ("index", "first_pair", "num_pairs", "skip_pairs")}
    return {**rest, "offset": position.offset, "number": position.number}
