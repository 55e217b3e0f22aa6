import inspect

import numpy as np
import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from rerank_service.engine.forward import packed_attention
from rerank_service.engine.pack import pack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[3, 1, 5], [128, 129, 2], [512, 513]])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_each_sequence_attends_to_itself_alone(
    heads: int, kv_heads: int, lengths: list[int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    packed = pack([np.zeros(length, np.int32) for length in lengths], torch.device("cpu"))
    query = torch.randn(1, heads, sum(lengths), 8).to(dtype)
    key, value = (torch.randn(1, kv_heads, sum(lengths), 8).to(dtype) for _ in range(2))

    out, _ = packed_attention(torch.nn.Identity(), query, key, value, None, scaling=0.3, packed=packed)

    assert (out.shape, out.dtype) == ((1, sum(lengths), heads, 8), dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    for start, end in zip(packed.bounds, packed.bounds[1:], strict=False):
        for head in range(heads):
            q = query[0, head, start:end].float()
            k, v = (t[0, head * kv_heads // heads, start:end].float() for t in (key, value))
            expected = (q @ k.T * 0.3).softmax(-1) @ v
            torch.testing.assert_close(out[0, start:end, head].float(), expected, atol=tolerance, rtol=tolerance)


def test_a_model_must_be_told_where_its_sequences_end() -> None:
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="packed="):
        packed_attention(torch.nn.Identity(), states, states, states, None)


def test_the_gpu_kernel_takes_the_arguments_we_give_it() -> None:
    """No GPU here: at least the call fits the installed torch's signature."""
    signature = inspect.signature(varlen_attn)
    signature.bind(*range(7), scale=None, enable_gqa=True, num_splits=1)
