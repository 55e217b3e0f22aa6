"""The numbers that quantised weights stand for, in float32: products of an integer or an 8-bit float with a scale.

A weight is `[N, K]`, as in `torch.nn.Linear`. In float32 the products are exact for scales in bfloat16 or float16: an
integer or an 8-bit float has at most 8 significant bits, and the scale at most 11.
"""

import torch

from rerank_service.engine.quantised.scheme import Scheme

__all__ = ["awq_weight", "gptq_weight", "scaled_weight", "unpack_integers"]

_AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
"""Place, in an int32, of each of eight consecutive columns (AWQ packs them in the order 0, 2, 4, 6, 1, 3, 5, 7)."""


def scaled_weight(
    stored: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    group_of: torch.Tensor | None,
    scheme: Scheme,
) -> torch.Tensor:
    """`(stored - zero_points) * scales` with `stored [N, K]`. There is a scale for the tensor, for each row, for each
    group of a row's columns, or for each block of a grid. `group_of [K]` names the group of each column if groups are
    not consecutive. Raises `ValueError` if the shapes do not fit.
    """
    shape = (stored.size(0), stored.size(1))
    weight = stored.float()
    if zero_points is not None:
        weight = weight - _spread(zero_points.float(), shape, group_of, scheme)
    return weight * _spread(scales.float(), shape, group_of, scheme)


def gptq_weight(
    packed: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group_of: torch.Tensor | None, scheme: Scheme
) -> torch.Tensor:
    """`(q - zero) * scale` from GPTQ's tensors (see `Layout.GPTQ`). Raises `ValueError`."""
    bits = _bits(scheme)
    integers = unpack_integers(packed.T, bits)  # [N, K]
    offsets = unpack_integers(zeros, bits)[:, : scales.size(1)] + scheme.zero_offset  # [G, N]
    if int(offsets.max()) >= 2**bits:
        # The first format stores zero points minus 1, so 0 overflows into the neighbouring numbers.
        raise ValueError("has zero points of 0, which the format gptq cannot store; export it as gptq_v2")
    groups = _group_of_each(integers.size(1), scales.size(0), group_of, scheme)
    return (integers - offsets.T[:, groups]).float() * scales.float().T[:, groups]


def awq_weight(packed: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """`(q - zero) * scale` from AWQ's tensors (see `Layout.AWQ`). Raises `ValueError`."""
    integers, offsets = _awq_columns(packed), _awq_columns(zeros)  # [K, N], [G, N]
    groups = _group_of_each(integers.size(0), scales.size(0), None, scheme)
    return ((integers - offsets[groups]).float() * scales.float()[groups]).T.contiguous()


def unpack_integers(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned integers `[R, C * 32 / bits]` of int32 numbers `[R, C]`; the lowest bits come first."""
    if packed.dtype != torch.int32:
        raise ValueError(f"has packed weights of type {packed.dtype}, not int32")
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    integers: torch.Tensor = (packed[:, :, None] >> shifts) & (2**bits - 1)
    return integers.flatten(1)


def _awq_columns(packed: torch.Tensor) -> torch.Tensor:
    words: torch.Tensor = unpack_integers(packed, 4).reshape(len(packed), -1, 8)
    return words[..., _AWQ_PLACES].flatten(1)


def _spread(
    values: torch.Tensor, shape: tuple[int, int], group_of: torch.Tensor | None, scheme: Scheme
) -> torch.Tensor:
    """Values of the tensor, its rows, groups or blocks, broadcastable to `shape`."""
    rows, columns = shape
    if values.numel() == 1:
        return values.reshape(1, 1)
    if values.dim() == 1:
        values = values[:, None]
    if values.dim() != 2:
        raise ValueError(f"has scales of shape {list(values.shape)} for a weight of shape {list(shape)}")
    if values.size(0) == rows:
        return values if values.size(1) == 1 else values[:, _group_of_each(columns, values.size(1), group_of, scheme)]
    high, wide = scheme.block or (0, 0)
    if not high or tuple(values.shape) != (-(-rows // high), -(-columns // wide)):
        raise ValueError(f"has scales of shape {list(values.shape)} for a weight of shape {list(shape)}")
    return values.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]


def _group_of_each(columns: int, num_groups: int, group_of: torch.Tensor | None, scheme: Scheme) -> torch.Tensor:
    """The group `[K]` of each input feature."""
    if group_of is not None and group_of.numel() and int(group_of.min()) >= 0:  # -1: not used
        if group_of.numel() != columns or int(group_of.max()) >= num_groups:
            raise ValueError(f"assigns {group_of.numel()} input features to groups, but has {columns}")
        return group_of.long()
    size = scheme.group_size or 0
    if columns % num_groups == 0 and (num_groups == 1 or not size or columns // num_groups == size):
        size = columns // num_groups
    if not size or -(-columns // size) != num_groups:
        raise ValueError(f"has {num_groups} groups of scales for {columns} input features")
    return torch.arange(columns) // size


def _bits(scheme: Scheme) -> int:
    if scheme.bits is None:
        raise ValueError("has packed weights, but its quantization_config declares none")
    return scheme.bits
