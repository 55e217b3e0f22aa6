"""A product of bytes with 8-bit weights on a CPU, by oneDNN; integer sums are exact, whatever the number of rows.

Needs VNNI (`precision.multiplies_int8`). Knows nothing of any model.
"""

from typing import Literal, NamedTuple

import torch

__all__ = ["AROUND_ZERO", "LARGEST", "SMALLEST", "ByteProduct", "Grid"]

LARGEST = 127
SMALLEST = torch.finfo(torch.float32).tiny
"""Of a scale: a row or a column of zeros has one as well."""
_TYPICAL_ROWS = 4096
"""Rows the layout of the weights is chosen for; other numbers work as well."""


class Grid(NamedTuple):
    """A tensor in bytes: `value = scale * (byte - zero_point)`."""

    scale: float
    zero_point: int


AROUND_ZERO = Grid(1.0, 128)
"""Signed numbers: oneDNN's fast kernels take unsigned inputs only; signed ones take a path 4,000 times slower."""


class ByteProduct:
    """`activation(x @ weight.T + bias)` of bytes `[..., K]` on a grid: to floats, or to bytes on another.

    The weights are quantised here, each output channel by its own largest.
    """

    def __init__(
        self,
        weight: torch.Tensor,  # [N, K] float32
        bias: torch.Tensor | None,
        inputs: Grid,
        outputs: torch.dtype | Grid,
        activation: Literal["none", "gelu"] = "none",
    ) -> None:
        self._scales = (weight.abs().amax(1) / LARGEST).clamp_min(SMALLEST)  # [N]
        quantised = (weight / self._scales[:, None]).round().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(quantised, [_TYPICAL_ROWS, weight.size(1)])
        self._zero_points = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = None if bias is None else bias.detach().float()  # [N]
        self._inputs = inputs
        self._outputs = (*outputs, torch.uint8) if isinstance(outputs, Grid) else (1.0, 0, outputs)
        self._activation = activation

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            *(inputs, *self._inputs),
            *(self._packed, self._scales, self._zero_points, self._bias),
            *self._outputs,
            *(self._activation, [], "none" if self._activation == "gelu" else ""),
        )
        return outputs
