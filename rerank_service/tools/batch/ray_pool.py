"""Chunks scored by a pool of actors under Ray Data, on this machine or a cluster. The one file here that knows Ray.

Only the numbers of chunks go to the actors and only scored lines come back: each actor reads its own part of the
input, which every node must see under the same path, as everywhere in Ray Data.
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
from rerank_service.tools.batch.chunk_scorer import ChunkScorer, ScoredChunk, ScoringTask
from rerank_service.tools.batch.chunks import Chunk
from rerank_service.tools.batch.records import Position
from rerank_service.tools.deployment.ray_environment import set_ray_environment

__all__ = ["PoolOptions", "ray_session", "score_on_ray"]


@dataclass(frozen=True)
class PoolOptions:
    """How many scorers there are, and what Ray sets aside for each."""

    num_workers: int
    num_cpus: float
    num_gpus: float

    @classmethod
    def for_cluster(cls, task: ScoringTask, num_workers: int | None) -> "PoolOptions":
        """Of the running session: a worker a GPU where there are GPUs and the model may use one, else a worker for
        each `replica.num_cpus`."""
        resources = ray.cluster_resources()
        replica = task.model.replica
        wants_gpu = task.model.engine.device != "cpu" and resources.get("GPU", 0) >= 1
        num_gpus = replica.num_gpus or float(wants_gpu)
        fit = [resources.get("CPU", 1) // replica.num_cpus] if replica.num_cpus else []
        fit += [resources.get("GPU", 0) / num_gpus] if num_gpus else []
        if num_gpus and not resources.get("GPU"):
            raise BatchError(f"model {task.model.id} is configured for {num_gpus:g} GPUs a replica, and there is none")
        return cls(num_workers or max(1, int(min(fit, default=1))), replica.num_cpus, num_gpus)


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """A Ray of our own, ended afterwards; or the cluster at `address`. Never one that happens to run here."""
    set_ray_environment(os.environ)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it writes over the progress bar
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
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BatchError(f"cannot reach a Ray cluster at {address}: {error}") from None
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()


def score_on_ray(task: ScoringTask, chunks: Iterable[Chunk], pool: PoolOptions) -> Iterator[ScoredChunk]:
    """In the order in which they get ready. Raises `BatchError` with the words of a worker that failed."""
    rows = [_row(chunk) for chunk in chunks]
    scored = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _ScoreBatch,
        fn_constructor_kwargs={"task": task, "num_cpus": pool.num_cpus},
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
    """Hands our errors back as words: what Ray Data raises for them has their text, in a traceback, but not them."""

    def __init__(self, task: ScoringTask, num_cpus: float) -> None:
        self._task = task
        self._num_cpus = num_cpus
        self._scorer: ChunkScorer | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        row = {name: int(values[0]) for name, values in batch.items()}
        position = Position(row.pop("offset"), row.pop("number"))
        problem = ""
        try:
            self._scorer = self._scorer or ChunkScorer(self._task, self._num_cpus)
            scored = self._scorer.score(Chunk(**row, start=position))
        except (BatchError, CheckpointError) as error:
            problem = str(error)
            scored = ScoredChunk(row["index"], b"", 0, 0, 0, "", 0)
        return {name: [value] for name, value in (scored._asdict() | {"problem": problem}).items()}


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's C++ announces its own log level there; what is wrong comes as an exception."""
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
