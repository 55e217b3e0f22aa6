"""From token states to one vector a sequence, always in float32.

The names and the formulas are those of the published checkpoints; `weighted_avg` is a plain sum there.
"""

from typing import Literal

import torch

from rerank_service.config import Pooling
from rerank_service.engine.device.pack import PackedSequences

__all__ = ["mean_pool", "pool"]


def pool(states: torch.Tensor, packed: PackedSequences, pooling: Pooling) -> torch.Tensor:
    """Token states `[T, H]` to vectors `[B, H]`, float32."""
    states = states.float()
    if pooling is Pooling.CLS:
        return states[packed.cu_seqlens[:-1]]
    if pooling is Pooling.LAST:
        return states[packed.cu_seqlens[1:] - 1]
    if pooling is Pooling.WEIGHTED_AVG:
        return _reduce(states, "sum", packed.lengths)
    return mean_pool(states, packed.lengths)


def mean_pool(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean over each segment: `[T, H]`, `[B]` to `[B, H]`."""
    return _reduce(states, "mean", lengths)


def _reduce(states: torch.Tensor, how: Literal["sum", "mean"], lengths: torch.Tensor) -> torch.Tensor:
    # Unchecked: to check that the lengths add up, the host would have to wait for the device.
    return torch.segment_reduce(states, how, lengths=lengths, unsafe=True)
