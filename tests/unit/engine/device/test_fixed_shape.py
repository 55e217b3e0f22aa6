"""Passes of one shape: no other pass reaches the device, and no logit changes."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerank_service.config import ModelConfig
from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.device.cuda import forbid_divided_sums
from rerank_service.engine.device.fixed_shape import FixedShape
from rerank_service.engine.device.pack import PackedSequences
from rerank_service.engine.kinds.checkpoint_engine import CheckpointEngine
from rerank_service.engine.linear.packed import can_pack
from rerank_service.engine.protocol import EncodedPair
from rerank_service.errors import CheckpointError
from tests.models import NASTY_PASSAGES, embedded_model, local_model


def pair(num_tokens: int) -> EncodedPair:
    return EncodedPair(np.ones(num_tokens, np.int32), num_tokens, False)


@given(st.integers(16, 4000), st.integers(1, 600), st.lists(st.integers(1, 600), min_size=1, max_size=200))
def test_every_batch_is_divided_into_passes_that_fit(batch_tokens: int, window: int, lengths: list[int]) -> None:
    shape = FixedShape.for_batches(batch_tokens, window)
    pairs = [pair(min(length, window)) for length in lengths]

    parts = list(shape.parts(pairs))

    assert [one for part in parts for one in part] == pairs
    for part in parts:
        unused = shape.num_sequences - len(part)
        assert part
        assert unused >= 0
        assert sum(one.num_tokens for one in part) + unused <= shape.num_tokens


def test_a_full_batch_of_the_usual_length_is_one_pass() -> None:
    assert len(list(FixedShape.for_batches(16_384, 8_192).parts([pair(512)] * 32))) == 1


def loaded(model: ModelConfig) -> CheckpointEngine[EncodedPair]:
    engine = load_engine(model)
    assert isinstance(engine, CheckpointEngine)
    return engine


@pytest.mark.parametrize("name", ["llama_bidirec", "mistral", "bert", "xlm_roberta", "qwen3"])
def test_all_passes_have_one_shape_and_the_usual_logits(
    checkpoints: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = loaded(local_model(checkpoints[name], engine={"dtype": "float32"}))
    pairs = engine.tokenise("what is it?", NASTY_PASSAGES * 3, Truncate.END)
    expected = [engine.score([one])[0] for one in pairs]
    shapes, states = set(), engine._states

    def run(packed: PackedSequences) -> torch.Tensor:
        tensors = (packed.token_ids, packed.position_ids, packed.type_ids, packed.lengths, packed.cu_seqlens)
        sizes = tuple(None if tensor is None else tensor.shape for tensor in tensors)
        shapes.add((*sizes, packed.max_length, len(packed.bounds)))
        return states(packed)

    monkeypatch.setattr(engine, "_states", run)
    engine.fix_shape(1_000)
    for batch in ([0], [3, 1], list(range(len(pairs)))):
        logits = engine.score([pairs[index] for index in batch])
        bound = 0.0 if can_pack(torch.float32) else 1e-5
        assert logits == pytest.approx([expected[index] for index in batch], abs=bound)
    assert len(shapes) == 1
    assert engine.is_batch_invariant


@pytest.mark.parametrize("name", ["embedded", "modernbert"])
def test_an_engine_that_computes_outside_packed_passes_is_refused(checkpoints: dict[str, Path], name: str) -> None:
    engine = loaded(embedded_model() if name == "embedded" else local_model(checkpoints[name]))
    with pytest.raises(CheckpointError, match=r"engine.batch_invariant does not support"):
        engine.fix_shape(1_000)


def test_cublas_may_not_divide_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul = torch.backends.cuda.matmul
    before = {
        name: (getattr(matmul, name), getattr(matmul, f"{name}_split_k"))
        for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    }
    chosen: list[str] = []
    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", chosen.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setenv("CUBLASLT_WORKSPACE_SIZE", "65536")
    try:
        forbid_divided_sums()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
        assert os.environ["CUBLASLT_WORKSPACE_SIZE"] == "1"
        assert chosen == ["cublaslt"]
        for name in before:
            assert not getattr(matmul, f"{name}_split_k")
    finally:
        for name, values in before.items():
            setattr(matmul, name, values)


def test_a_model_of_a_pool_cannot_change_the_products_of_the_others() -> None:
    with pytest.raises(ValueError, match=r"cannot set engine.batch_invariant"):
        ModelConfig.model_validate(
            {"id": "m", "pool": "p", "checkpoint": {"source": "/models/m"}, "engine": {"batch_invariant": True}}
        )
