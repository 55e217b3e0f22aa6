"""What the workers of `rerank-service batch` on Ray know about their resources. Ray itself is not started."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rerank_service.config import ModelConfig
from rerank_service.errors import BatchError, CheckpointError
from rerank_service.messages import Fitting
from rerank_service.tools.batch import chunk_scorer, ray_pool
from rerank_service.tools.batch.chunk_scorer import ScoringTask
from rerank_service.tools.batch.chunks import Chunk
from rerank_service.tools.batch.records import Position
from rerank_service.tools.batch.sources import InputFiles


class Dataset:
    """Stands in for a data set of Ray, with one worker in this process."""

    def __init__(self, rows: list[dict[str, int]]) -> None:
        self._rows = rows

    def map_batches(self, worker: Any, *, fn_constructor_kwargs: dict[str, Any], **_: Any) -> "Dataset":
        self._worker = worker(**fn_constructor_kwargs)
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            scored = self._worker({name: np.array([value]) for name, value in row.items()})
            yield {name: value for name, (value,) in scored.items()}


@pytest.mark.parametrize("num_gpus", [0, 0.25, 1])
def test_a_worker_uses_only_the_part_of_a_gpu_that_ray_reserves_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, num_gpus: float
) -> None:
    """Ray shows all GPUs to a worker without GPUs, and a whole GPU to a worker with a part of it."""
    reserved: list[tuple[Any, Any]] = []

    def load(model: ModelConfig, num_cpus: float | None, *, num_gpus: float | None, agree: object) -> Any:
        reserved.append((num_cpus, num_gpus))
        raise CheckpointError("seen enough")

    monkeypatch.setattr(chunk_scorer, "load_engine", load)
    monkeypatch.setattr(ray_pool.ray, "data", SimpleNamespace(from_items=lambda rows, **_: Dataset(rows)))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": "q", "passage": "p"}\n')
    model = ModelConfig.model_validate({"id": "m", "checkpoint": {"source": "/m"}})
    task = ScoringTask(InputFiles(pairs, None, tmp_path / "index"), model, Fitting())
    chunk = Chunk(index=0, first_pair=0, num_pairs=1, start=Position(0, 1), skip_pairs=0)
    with pytest.raises(BatchError, match="seen enough"):
        list(ray_pool.score_on_ray(task, [chunk], ray_pool.PoolOptions(1, 2, num_gpus)))

    assert reserved == [(2, num_gpus)]


@pytest.mark.parametrize(
    ("address", "message"),
    [(None, "Ray cannot start here: timed out"), ("head:1", "cannot connect to a Ray cluster at head:1: timed out")],
)
def test_a_ray_that_does_not_start_is_reported_in_a_line(
    monkeypatch: pytest.MonkeyPatch, address: str | None, message: str
) -> None:
    def init(**_: Any) -> None:
        raise Exception("timed out")  # Ray's own type

    monkeypatch.setattr(ray_pool, "set_ray_environment", lambda _: None)
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    monkeypatch.setattr(ray_pool.ray, "init", init)
    with pytest.raises(BatchError, match=f"^{message}$"), ray_pool.ray_session(address):
        pass
