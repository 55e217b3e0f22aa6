"""With `engine.batch_invariant`, all passes on a GPU have one shape, and cuBLAS may not divide sums."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.device import cuda
from rerank_service.engine.device.pack import PackedSequences
from rerank_service.errors import CheckpointError
from tests.gpu_less.engines import MODELS, TOLERANCES, Run, software_gpu
from tests.models import local_model

PASSAGES = ["the quick brown fox", "a", "Paris is the capital of France. " * 6, "fox " * 20] * 3
FIXED = ["llama_bidirec", "mistral", "bert", "xlm_roberta", "gte", "qwen3", "minicpm"]


def settings(name: str, **more: Any) -> dict[str, Any]:
    return MODELS[name] | {"compile": False, "batch_invariant": True} | more


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records that the products were restricted, instead of restricting those of the test's process."""
    seen: list[str] = []
    monkeypatch.setattr(cuda, "forbid_divided_sums", lambda: seen.append("undivided"))
    return seen


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
@pytest.mark.parametrize("name", FIXED)
def test_all_passes_have_one_shape(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path], products: list[str], name: str, dtype: str
) -> None:
    exact = "float8" if dtype == "float8" else "float32"
    cpu: Any = load_engine(local_model(checkpoints[name], engine=MODELS[name] | {"dtype": exact}))
    pairs = cpu.tokenise("which animal jumps", PASSAGES, Truncate.END)
    expected, shapes = cpu.score(pairs), set()
    model = local_model(
        checkpoints[name],
        engine=settings(name, device="cuda:0", dtype=dtype),
        batching={"max_batch_tokens": 300},
        window_tokens=256,
    )
    with software_gpu(monkeypatch, Run(name)):
        engine: Any = load_engine(model)
        states = engine._states

        def run(packed: PackedSequences) -> torch.Tensor:
            shapes.add((packed.token_ids.shape, packed.lengths.shape, packed.cu_seqlens.shape, packed.max_length))
            result: torch.Tensor = states(packed)
            return result

        engine._states = run
        for batch in ([0], [2, 1], list(range(len(pairs)))):
            found = engine.score([pairs[index] for index in batch])
            assert found == pytest.approx([expected[index] for index in batch], abs=TOLERANCES[dtype])
    assert products == ["undivided"]
    assert engine.is_batch_invariant
    assert engine.num_graphs == 0
    assert len(shapes) == 1


@pytest.mark.parametrize("name", sorted(MODELS.keys() - set(FIXED)))
def test_an_engine_that_cannot_keep_the_promise_is_refused(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path], products: list[str], name: str
) -> None:
    with (
        software_gpu(monkeypatch, Run(name)),
        pytest.raises(CheckpointError, match=r"engine.batch_invariant does not support"),
    ):
        load_engine(local_model(checkpoints[name], engine=settings(name, device="cuda:0")))


def test_without_the_setting_products_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path], products: list[str]
) -> None:
    with software_gpu(monkeypatch, Run("bert")):
        engine = load_engine(
            local_model(checkpoints["bert"], engine={"device": "cuda:0", "compile": False, "cuda_graphs": False})
        )
        assert not engine.is_batch_invariant
    assert products == []
