import dataclasses
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.device.forward import (
    PACKED_ATTENTION,
    PACKED_CAUSAL_ATTENTION,
    hidden_states,
    packed_attention,
    shared_rows,
    variable_length_attention,
)
from rerank_service.engine.device.pack import PackedSequences, pack
from tests.models import local_model


@pytest.mark.parametrize("sees_later", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[3, 1, 5], [128, 129, 2], [512, 513]])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_each_sequence_attends_only_to_itself(
    heads: int, kv_heads: int, lengths: list[int], dtype: torch.dtype, sees_later: bool
) -> None:
    torch.manual_seed(0)
    packed = pack([np.zeros(length, np.int32) for length in lengths], torch.device("cpu"))
    query = torch.randn(1, heads, sum(lengths), 8).to(dtype)
    key, value = (torch.randn(1, kv_heads, sum(lengths), 8).to(dtype) for _ in range(2))

    out, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, scaling=0.3, packed=packed, sees_later=sees_later
    )

    assert (out.shape, out.dtype) == ((1, sum(lengths), heads, 8), dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    for start, end in zip(packed.bounds, packed.bounds[1:], strict=False):
        for head in range(heads):
            q = query[0, head, start:end].float()
            k, v = (t[0, head * kv_heads // heads, start:end].float() for t in (key, value))
            scores = q @ k.T * 0.3
            if not sees_later:
                scores += torch.full_like(scores, -torch.inf).triu(1)
            expected = scores.softmax(-1) @ v
            torch.testing.assert_close(out[0, start:end, head].float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("sees_later", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [-300.0, -70.0, 70.0, 300.0])
def test_extreme_scores_neither_overflow_nor_vanish(shift: float, dtype: torch.dtype, sees_later: bool) -> None:
    """All scores of a row are moved by `shift`, which does not change attention; only the first sequence is moved."""
    torch.manual_seed(0)
    lengths = [40, 24]
    packed = pack([np.zeros(length, np.int32) for length in lengths], torch.device("cpu"))
    query, key, value = (torch.randn(1, 2, sum(lengths), 8).to(dtype) for _ in range(3))
    query[..., 0] = 0
    key[..., 0] = 16

    def attend(query: torch.Tensor) -> torch.Tensor:
        return packed_attention(
            torch.nn.Identity(), query, key, value, None, scaling=1.0, packed=packed, sees_later=sees_later
        )[0].float()

    expected = attend(query)
    query[:, :, :40, 0] = shift / 16
    moved = attend(query)

    tolerance = 1e-4 if dtype is torch.float32 else 1.0  # bfloat16 has 8 bits, so scores near 300 are rounded to 2
    torch.testing.assert_close(moved, expected, atol=tolerance, rtol=0)
    assert torch.equal(moved[:, 40:], expected[:, 40:])  # the other sequence is computed as before


@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 130, 511, 512, 2001, 4001, 8192])
def test_batches_share_numbers_of_rows(num_rows: int) -> None:
    shared = {shared_rows(rows) for rows in range(num_rows, num_rows + 64)}
    assert num_rows <= shared_rows(num_rows) < num_rows + max(16, num_rows / 31)
    assert len(shared) <= 5


@pytest.mark.parametrize(("name", "num_states"), [("bert", 3), ("xlm_roberta", 3), ("llama_bidirec", 20)])
def test_rows_that_round_up_a_batch_change_no_state(checkpoints: dict[str, Path], name: str, num_states: int) -> None:
    """The last layer of a classifier computes only the first token of each sequence."""
    model: Any = load_backbone(checkpoints[name])
    sequences = [np.arange(5, 5 + length, dtype=np.int32) for length in (7, 9, 4)]
    whole = pack(sequences, torch.device("cpu"))
    with torch.inference_mode():
        together = hidden_states(model, whole)
        alone = [hidden_states(model, pack([sequence], torch.device("cpu"))) for sequence in sequences]
    assert len(together) == num_states
    assert torch.equal(together, torch.cat(alone))


def test_a_model_must_be_called_with_packed_sequences() -> None:
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="packed="):
        packed_attention(torch.nn.Identity(), states, states, states, None)


@torch.library.custom_op("rerank_test::varlen", mutates_args=())
def varlen_on_a_cpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_length: int,
    scale: float,
    after: int,
) -> torch.Tensor:
    """Computes the same result as the GPU's kernel, from the same arguments."""
    out = torch.empty_like(q)
    bounds = cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        assert end - start <= max_length
        heads = (tensor[start:end].transpose(0, 1) for tensor in (q, k, v))
        attended = torch.nn.functional.scaled_dot_product_attention(
            *heads, scale=scale, is_causal=after == 0, enable_gqa=True
        )
        out[start:end] = attended.transpose(0, 1)
    return out


@varlen_on_a_cpu.register_fake
def _(q: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(q)


def kernel(
    q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, *, scale: float, window_size: tuple[int, int]
) -> Any:
    """A CPU kernel that takes what every release's GPU kernel takes."""
    before, after = window_size
    assert before == -1
    return varlen_on_a_cpu(q, k, v, cu_q, max_q, scale, after)


def attention_on_a_gpu(
    module: torch.nn.Module, query: Any, key: Any, value: Any, mask: None, scaling: float, packed: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    attended = variable_length_attention(query, key, value, packed, scaling, options["sees_later"], kernel)
    return attended, None


@pytest.fixture
def gpu_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes models attend as on a GPU, but with a CPU kernel."""
    for name, sees_later in ((PACKED_ATTENTION, True), (PACKED_CAUSAL_ATTENTION, False)):
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, name, partial(attention_on_a_gpu, sees_later=sees_later))


def random_batch(rng: np.random.Generator) -> PackedSequences:
    lengths = rng.integers(2, 40, rng.integers(2, 9))
    packed = pack([rng.integers(5, 90, length).astype(np.int32) for length in lengths], torch.device("cpu"))
    return dataclasses.replace(packed, max_length=64)


def load_backbone(folder: Path) -> Any:
    engine: Any = load_engine(local_model(folder))
    return engine.backbone


@pytest.mark.parametrize("name", ["llama_bidirec", "qwen3"])
def test_the_gpu_path_computes_the_same_states(
    checkpoints: dict[str, Path], name: str, request: pytest.FixtureRequest
) -> None:
    model, packed = load_backbone(checkpoints[name]), random_batch(np.random.default_rng(0))
    with torch.inference_mode():
        expected = hidden_states(model, packed)
        request.getfixturevalue("gpu_path")
        torch.testing.assert_close(hidden_states(model, packed), expected, atol=1e-5, rtol=1e-5)


WAITS_FOR_THE_DEVICE = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"}


class NoWaiting(TorchDispatchMode):
    """Refuses operators that make the host wait for their result."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in WAITS_FOR_THE_DEVICE, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["llama_bidirec", "mistral", "bert", "xlm_roberta", "qwen3"])
def test_no_layer_waits_for_the_device(checkpoints: dict[str, Path], name: str) -> None:
    engine: Any = load_engine(local_model(checkpoints[name]))
    pairs = engine.tokenise("a question", ["short", "a passage of several words"], Truncate.END)
    with NoWaiting(), torch.inference_mode():
        engine.forward(pairs)
