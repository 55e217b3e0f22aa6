"""Operators that a CPU runs differently from a GPU, or not at all, and indexing without C++ code for CUDA."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.attention.varlen  # registers torch_attn::_varlen_attn

__all__ = ["FUNCTIONS", "OPERATORS", "attend"]

aten = torch.ops.aten

_HALF = (torch.bfloat16, torch.float16)
_LARGEST_HEAD = 256


@torch.library.custom_op("gpu_less::attend", mutates_args=())
def attend(
    query: torch.Tensor,  # [T, Hq, D]
    key: torch.Tensor,  # [T, Hkv, D]
    value: torch.Tensor,  # [T, Hkv, D]
    starts: torch.Tensor,  # [B + 1]
    longest: int,
    scale: float | None,
    left: int,
    right: int,
) -> torch.Tensor:
    """The variable-length kernel, which refuses what FlashAttention 2 refuses. Rows outside of all sequences stay
    unwritten."""
    _check_attention(query, key, value, starts)
    out = torch.full_like(query, torch.nan)
    for start, end in pairwise(starts.tolist()):
        if end - start > longest:
            raise AssertionError(f"a sequence of {end - start} tokens is longer than max_q={longest}: it would be cut")
        heads = (part[start:end].transpose(0, 1).float() for part in (query, key, value))
        places = torch.arange(end - start)
        ahead = places - places[:, None]  # of a key before a row, negative
        is_seen = (ahead >= -(left if left >= 0 else end)) & (ahead <= (right if right >= 0 else end))
        attended = torch.nn.functional.scaled_dot_product_attention(
            *heads, attn_mask=is_seen, scale=scale, enable_gqa=True
        )
        out[start:end] = attended.transpose(0, 1).to(out.dtype)
    return out


@attend.register_fake
def _(query: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(query)


def _check_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor) -> None:
    parts = (query, key, value)
    _refuse(any(part.dim() != 3 for part in parts), "attention takes [T, H, D]")
    _refuse(query.dtype not in _HALF, "FlashAttention only supports fp16 and bf16 data type")
    _refuse(len({part.dtype for part in parts}) > 1, "query, key and value must have the same dtype")
    _refuse(any(part.stride(-1) != 1 for part in parts), "input tensor must have contiguous last dimension")
    _refuse(query.size(2) > _LARGEST_HEAD or query.size(2) % 8 != 0, "head size must be a multiple of 8, at most 256")
    _refuse(key.shape != value.shape or key.size(0) != query.size(0), "key and value must fit the query")
    _refuse(query.size(1) % key.size(1) != 0, "query heads must be a multiple of key heads")
    _refuse(starts.dtype is not torch.int32, "cu_seqlens_q must have dtype int32")
    _refuse(starts.dim() != 1 or not starts.is_contiguous(), "cu_seqlens_q must be contiguous")


def _refuse(is_wrong: bool, message: str) -> None:
    if is_wrong:
        raise RuntimeError(message)


def _installed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    longest: int,
    longest_key: int,
    is_causal: bool = False,
    scale: float | None = None,
    window: tuple[int, int] = (-1, -1),
    *_: Any,
) -> tuple[torch.Tensor, ...]:
    """The operator below the installed torch's `varlen_attn`. Of its three results, the first is used."""
    out = attend(query, key, value, starts, longest, scale, *window)
    return out, query.new_zeros(0), query.new_zeros(0)


def scaled_product(
    rows: torch.Tensor,  # [M, K] float8
    weight: torch.Tensor,  # [K, N] float8, transposed
    row_scales: torch.Tensor,  # [M, 1]
    column_scales: torch.Tensor,  # [1, N]
    bias: torch.Tensor | None = None,
    scale_result: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> torch.Tensor:
    """`_scaled_mm` with a scale per row, which refuses what cuBLASLt and CUTLASS refuse."""
    _refuse(rows.dtype is not torch.float8_e4m3fn or weight.dtype is not torch.float8_e4m3fn, "both must be e4m3")
    _refuse(rows.stride(1) != 1, f"self must be row_major, got stride {rows.stride()}")
    _refuse(weight.stride(0) != 1, f"mat2 must be col_major, got stride {weight.stride()}")
    _refuse(any(size % 16 for size in (*rows.shape[1:], *weight.shape)), "sizes must be divisible by 16")
    _refuse(row_scales.dtype is not torch.float32 or column_scales.dtype is not torch.float32, "scales must be float32")
    fits = row_scales.shape == (rows.size(0), 1) and column_scales.shape == (1, weight.size(1))
    _refuse(not fits, f"scales {tuple(row_scales.shape)}, {tuple(column_scales.shape)} do not fit row-wise scaling")
    _refuse(not (row_scales.is_contiguous() and column_scales.is_contiguous()), "scales must be contiguous")
    _refuse(out_dtype is not torch.bfloat16, "Only bf16 high precision output types are supported for row-wise scaling")
    _refuse(bias is not None and bias.dtype is not torch.bfloat16, "bias must be bfloat16")
    product = rows.float() @ weight.float() * row_scales * column_scales
    return (product if bias is None else product + bias).to(torch.bfloat16)


def _read(tensor: torch.Tensor, *_: Any) -> Any:
    return aten._local_scalar_dense(tensor)


def _to_list(tensor: Any) -> Any:
    aten._local_scalar_dense(
        tensor.reshape(-1).select(0, 0)
    ) if tensor.numel() else None  # a wait, like a copy to the host
    return tensor.host.tolist()


def _get(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    view, indices = _view(tensor, index)
    return view if indices is None else aten.index.Tensor(view, indices)


def _set(tensor: torch.Tensor, index: Any, value: Any) -> None:
    view, indices = _view(tensor, index)
    if not isinstance(value, torch.Tensor):
        value = torch.full((), value, dtype=tensor.dtype, device=tensor.device)
    if indices is None:
        aten.copy_.default(view, value)
    else:
        aten.index_put_.default(view, indices, value.to(tensor.dtype))


def _view(tensor: torch.Tensor, index: Any) -> tuple[torch.Tensor, list[torch.Tensor | None] | None]:
    """The part of an index that makes a view, and the tensors that select elements of this view."""
    parts = list(index) if isinstance(index, tuple) else [index]
    named = sum(part is not None and part is not Ellipsis for part in parts)
    if Ellipsis in [part for part in parts if not isinstance(part, torch.Tensor)]:
        at = next(place for place, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (tensor.dim() - named)
    indices: list[torch.Tensor | None] = []
    dim = 0
    for part in parts:
        if part is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(part, slice):
            tensor = aten.slice.Tensor(tensor, dim, part.start, part.stop, part.step or 1)
        elif isinstance(part, int):
            tensor = aten.select.int(tensor, dim, part)
            continue
        else:  # a tensor, or a list of numbers, which torch turns into a tensor on the CPU
            indices += [None] * (dim - len(indices))
            indices.append(part if isinstance(part, torch.Tensor) else torch.tensor(part))
        dim += 1
    return tensor, indices or None


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """torch's fused attention as its definition, because the choice of a kernel is C++ code for CUDA."""
    mask, causal = (*args, None)[0] if args else options.get("attn_mask"), options.get("is_causal", False)
    if options.get("enable_gqa") and query.size(1) != key.size(1):
        key, value = (part.repeat_interleave(query.size(1) // key.size(1), 1) for part in (key, value))
    scale = options.get("scale")
    scores = query @ key.transpose(-2, -1) * (query.size(-1) ** -0.5 if scale is None else scale)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(aten.bitwise_not(mask), -torch.inf) if mask.dtype is torch.bool else scores + mask
    return scores.softmax(-1) @ value


def _set_data(tensor: Any, value: Any) -> None:
    with torch._C.DisableTorchFunction():
        torch.Tensor.data.__set__(tensor, value)  # type: ignore[attr-defined]
    tensor.host = value.host


OPERATORS: dict[Any, Callable[..., Any]] = {
    aten._scaled_mm.default: scaled_product,
    torch.ops.torch_attn._varlen_attn.default: _installed_attention,
}
"""Operators that run differently on a GPU than on a CPU."""

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.__getitem__: _get,
    torch.Tensor.__setitem__: _set,
    torch.Tensor.item: _read,
    torch.Tensor.__float__: lambda tensor: float(_read(tensor)),
    torch.Tensor.__int__: lambda tensor: int(_read(tensor)),
    torch.Tensor.__bool__: lambda tensor: bool(_read(tensor)),
    torch.Tensor.__index__: lambda tensor: int(_read(tensor)),
    torch.Tensor.tolist: _to_list,
    torch.Tensor.copy_: aten.copy_.default,
    torch.Tensor.contiguous: aten.contiguous.default,
    torch.Tensor.__invert__: aten.bitwise_not.default,
    torch.Tensor.nonzero: aten.nonzero.default,
    torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    torch.nn.functional.scaled_dot_product_attention: _attention,
}
"""Functions of torch's Python interface whose C++ code needs CUDA, for a first argument on a GPU."""
