"""Packed attention that passes gradients on, registered with transformers under two names.

The engines' own packed attention writes into memory that it reuses, so it has no gradients. This attention computes the
same formula sequence by sequence, on every device.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface

from rerank_service.engine.device.forward import PACKED_ATTENTION, PACKED_CAUSAL_ATTENTION, attend_sequence
from rerank_service.engine.device.pack import PackedSequences

__all__ = ["use_differentiable_attention"]

_NAMES = {PACKED_ATTENTION: "differentiable", PACKED_CAUSAL_ATTENTION: "differentiable_causal"}


def use_differentiable_attention(backbone: Any) -> None:
    """Replaces the packed attention of a transformers model; a model with other attention stays as it is."""
    name = _NAMES.get(backbone.config._attn_implementation)
    if name is not None:
        backbone.set_attn_implementation(name)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, Hq, T, D]
    key: torch.Tensor,  # [1, Hkv, T, D]
    value: torch.Tensor,  # [1, Hkv, T, D]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    packed: PackedSequences,
    sees_later: bool,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Has the signature of `packed_attention` of the engines, and returns `[1, T, Hq, D]` like it."""
    reach = None if sliding_window is None else sliding_window - 1
    parts = []
    for number, (start, end) in enumerate(pairwise(packed.bounds)):
        seen = slice(start, end if packed.num_seen is None else start + packed.num_seen[number])
        parts.append(
            attend_sequence(query[:, :, start:end], key[:, :, seen], value[:, :, seen], scaling, sees_later, reach)
        )
    num_more = query.size(2) - packed.bounds[-1]  # on a CPU, rows follow that belong to no sequence
    parts.append(parts[-1][:, :, -1:].expand(-1, -1, num_more, -1))
    return torch.cat(parts, 2).transpose(1, 2), None


AttentionInterface.register(_NAMES[PACKED_ATTENTION], partial(_attention, sees_later=True))
AttentionInterface.register(_NAMES[PACKED_CAUSAL_ATTENTION], partial(_attention, sees_later=False))
