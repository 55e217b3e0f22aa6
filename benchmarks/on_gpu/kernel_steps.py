"""Checks of single kernels against float32: float8 products and variable-length attention."""

import argparse
from collections.abc import Callable, Iterator
from itertools import pairwise, product

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from rerank_service.engine.device.forward import packed_attention
from rerank_service.engine.device.pack import pack
from rerank_service.engine.linear.float8 import Float8Linear

__all__ = ["STEPS", "verdict"]

_HEIGHTS = (1, 17, 130, 247, 2049, 16384)
_SHAPES = {"2048 x 8192": (2048, 8192), "8192 x 2048": (8192, 2048), "4096 x 14336": (4096, 14336)}
"""Inputs and outputs of the linear layers of the 1B and the 4B."""
_CPU_HEIGHTS, _CPU_SHAPES = (1, 17), {"64 x 128": (64, 128)}
_FLOAT8_TOLERANCE = 0.06
"""Relative error of products in 8-bit floats; rounding both factors to three bits of mantissa gives about 0.037."""
_ATTENTION_TOLERANCE = 0.01
"""Relative error of attention in bfloat16; rounding gives 0.002 to 0.005."""
_LENGTHS, _CPU_LENGTHS = (1, 17, 128, 511, 300, 64), (1, 17, 40)


def verdict(name: str, error: float, tolerance: float) -> str:
    """A line that starts with "ok" or "FAIL"; an error that is not a number fails."""
    return f"{'ok' if error <= tolerance else 'FAIL'}: {name}: error {error:.4f}, at most {tolerance}"


@torch.inference_mode()
def products(options: argparse.Namespace) -> Iterator[str]:
    """Float8 linear layers with scales for rows and columns, for batches of any height."""
    is_cuda = options.device.startswith("cuda")
    for name, (width, outputs) in (_SHAPES if is_cuda else _CPU_SHAPES).items():
        linear = torch.nn.Linear(width, outputs, bias=False, device=options.device, dtype=torch.bfloat16)
        exact, layer = linear.weight.float(), Float8Linear(linear)
        for height in _HEIGHTS if is_cuda else _CPU_HEIGHTS:
            rows = torch.randn(height, width, device=options.device, dtype=torch.bfloat16)
            rows *= torch.logspace(-2, 2, height, device=options.device)[:, None]  # rows need different scales
            error = _largest_row_error(layer(rows), F.linear(rows.float(), exact))
            yield verdict(f"float8, {height} rows, {name}", error, _FLOAT8_TOLERANCE)


def _largest_row_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative error of a row, in the Euclidean norm."""
    return float(((found.float() - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@torch.inference_mode()
def attention(options: argparse.Namespace) -> Iterator[str]:
    """Attention over packed sequences as the engines call it, against float32 for each sequence."""
    device = torch.device(options.device)
    lengths = _LENGTHS if device.type == "cuda" else _CPU_LENGTHS
    packed = pack([np.ones(length, np.int32) for length in lengths], device)
    kinds = product((torch.bfloat16, torch.float16), (16, 64, 128), ((8, 8), (32, 8)), (True, False))
    for dtype, width, (heads, key_heads), sees_later in kinds:
        shape = (1, heads, packed.bounds[-1], width)
        query = torch.randn(shape, device=device, dtype=dtype)
        key, value = (torch.randn(1, key_heads, *shape[2:], device=device, dtype=dtype) for _ in range(2))
        states, _ = packed_attention(torch.nn.Identity(), query, key, value, None, packed=packed, sees_later=sees_later)
        errors = []
        for start, end in pairwise(packed.bounds):
            exact = F.scaled_dot_product_attention(
                *(tensor[:, :, start:end].float() for tensor in (query, key, value)),
                is_causal=not sees_later,
                enable_gqa=heads != key_heads,
            )
            found = states[:, start:end].transpose(1, 2).float()
            errors.append(float((found - exact).norm() / exact.norm()))
        name = f"{str(dtype).removeprefix('torch.')}, {heads}/{key_heads} heads of {width}"
        yield verdict(f"attention, {name}, {'full' if sees_later else 'causal'}", max(errors), _ATTENTION_TOLERANCE)


STEPS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {"products": products, "attention": attention}
