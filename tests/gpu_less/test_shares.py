"""A replica with a fraction of a GPU limits its memory before it loads the model, and measures only its share."""

from pathlib import Path

import pytest

from rerank_service.engine import load_engine
from rerank_service.engine.device import cuda
from rerank_service.engine.kinds import checkpoint_engine
from rerank_service.engine.kinds.checkpoint_engine import CheckpointEngine
from tests.gpu_less.engines import Run, software_gpu
from tests.models import local_model


def loaded(
    monkeypatch: pytest.MonkeyPatch, folder: Path, num_gpus: float | None
) -> tuple[CheckpointEngine, list[float]]:  # type: ignore[type-arg]
    limits: list[float] = []
    model = local_model(folder, engine={"device": "auto", "compile": False, "cuda_graphs": False})
    with software_gpu(monkeypatch, Run("bert")):
        monkeypatch.setattr(cuda, "limit_memory", lambda device, share: limits.append(share))
        engine = load_engine(model, num_gpus=num_gpus)
    assert isinstance(engine, CheckpointEngine)
    return engine, limits


def test_a_fraction_is_measured_as_a_fraction(monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path]) -> None:
    whole, no_limits = loaded(monkeypatch, checkpoints["bert"], 1)
    half, limits = loaded(monkeypatch, checkpoints["bert"], 0.5)

    assert no_limits == []
    (limit,) = limits
    assert 0.48 < limit < 0.5
    assert whole.memory_limit_bytes == 2 * (half.memory_limit_bytes or 0) == 80 * 2**30
    assert whole.memory_tokens == pytest.approx(2 * (half.memory_tokens or 0), rel=0.03)
    assert whole.peak_tokens_per_s == pytest.approx(2 * (half.peak_tokens_per_s or 0))


def test_a_replica_without_a_gpu_runs_on_the_cpu_of_a_machine_with_gpus(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path]
) -> None:
    engine, _ = loaded(monkeypatch, checkpoints["bert"], 0)
    assert engine.device.type == "cpu"


def test_memory_is_measured_without_graphs(monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path]) -> None:
    """A replay allocates nothing, so a pass that replays a graph would seem to need no memory."""
    found = []
    for has_graphs in (False, True):
        settings = {"device": "cuda:0", "dtype": "bfloat16", "compile": False, "cuda_graphs": has_graphs}
        with software_gpu(monkeypatch, Run("bert")):
            monkeypatch.setattr(checkpoint_engine, "bucket_sizes", lambda _: [1024])  # the probe fits in
            engine = load_engine(local_model(checkpoints["bert"], engine=settings))
        assert isinstance(engine, CheckpointEngine)
        assert engine.num_graphs == has_graphs
        found.append(engine.memory_tokens)
    assert found[1] == pytest.approx(found[0], rel=0.02)
