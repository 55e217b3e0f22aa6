"""8-bit integer linear layers for a CPU, multiplied by oneDNN.

`Int8Linear` scales the weights of each output channel once, and scales each input row by the row's largest value. It
needs no calibration, and rows do not depend on each other: integer sums are exact for any number of rows. Needs AVX2
(`precision.multiplies_int8`).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

__all__ = ["AROUND_ZERO", "LARGEST", "SMALLEST", "ByteProduct", "Grid", "Int8Linear"]

LARGEST = 127
"""Largest magnitude of a quantised value."""
SMALLEST = torch.finfo(torch.float32).tiny
"""Lower bound of a scale, used for rows and columns of zeros."""
_TYPICAL_ROWS = 4096
"""Number of input rows for which oneDNN lays out the weights; any other number works too."""
_TILE_ELEMENTS = 786_432
"""Elements per tile of rows (512 rows of 1,536), few enough for float32 intermediates to stay in the CPU cache."""


class Grid(NamedTuple):
    """How the bytes of a tensor represent values: `value = scale * (byte - zero_point)`."""

    scale: float
    zero_point: int


AROUND_ZERO = Grid(1.0, 128)
"""The grid that represents signed values as unsigned bytes. oneDNN's fast kernels take only unsigned inputs; its other
path, for signed inputs, is 4,000 times slower."""


class ByteProduct:
    """`activation(x @ weight.T + bias)` from bytes `[..., K]` on a grid to floats `[..., N]`, or to bytes on a grid.

    The constructor quantises the weights, each output channel by its own largest value.
    """

    def __init__(
        self,
        weight: torch.Tensor,  # [N, K] float32
        bias: torch.Tensor | None,  # [N]
        inputs: Grid,
        outputs: torch.dtype | Grid,
        activation: Literal["none", "gelu"] = "none",
    ) -> None:
        self._scales = (_largest_pairs(weight) / LARGEST).clamp_min(SMALLEST)  # [N]
        quantised = (weight / self._scales[:, None]).round().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(quantised, [_TYPICAL_ROWS, weight.size(1)])
        self._zero_points = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = None if bias is None else bias.detach().float()
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


def _largest_pairs(weight: torch.Tensor) -> torch.Tensor:
    """Largest magnitude `[N]` of a weight, or of the sum of two neighbours, in each row of `[N, K]`.

    Without VNNI, the instruction `vpmaddubsw` adds two neighbours in 16 bits. Quantised with this as `LARGEST`, two
    neighbours of equal sign add up to at most 128 after rounding, and 255 * 128 fits. The weights lose a quarter of a
    bit; halving all of them would lose a whole bit. Processors with VNNI obey the same limit, so that the weights are
    equal on all processors.
    """
    padded = F.pad(weight, (0, weight.size(1) % 2))
    pairs = padded.view(len(weight), -1, 2).sum(-1)
    return torch.maximum(weight.abs().amax(1), pairs.abs().amax(1))


class Int8Linear(torch.nn.Module):
    """`activation(x @ weight.T + bias)` for inference: `[..., K]` to `[..., N]`, in the dtype of the input."""

    def __init__(self, linear: torch.nn.Linear, activation: Literal["none", "gelu"] = "none") -> None:
        super().__init__()
        weight = linear.weight.detach().float()  # [N, K]
        self._activation = activation
        self._num_outputs = linear.out_features
        self._tile_rows = max(16, _TILE_ELEMENTS // max(linear.in_features, linear.out_features))
        # The product gets no bias, because its rows are multiplied by their scales before the bias is added.
        self._multiply = ByteProduct(weight, None, AROUND_ZERO, torch.float32)
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach().float()
        self._bias = bias  # [N]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.size(-1))
        outputs = torch.empty(len(rows), self._num_outputs, dtype=inputs.dtype)
        for start in range(0, len(rows), self._tile_rows):
            tile = slice(start, start + self._tile_rows)
            quantised, scales = _quantise_rows(rows[tile].float())
            products = torch.addcmul(self._bias, self._multiply(quantised), scales)
            outputs[tile] = F.gelu(products) if self._activation == "gelu" else products
        return outputs.view(*inputs.shape[:-1], self._num_outputs)


def _quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Converts float32 rows `[R, K]` to unsigned bytes around 128; also returns the scale of each row, `[R, 1]`."""
    scales = (rows.abs().amax(1, keepdim=True) / LARGEST).clamp_min_(SMALLEST)
    signed = (rows / scales).round_().to(torch.int8)  # torch converts to int8 seven times faster than to uint8
    return signed.view(torch.uint8).bitwise_xor_(AROUND_ZERO.zero_point), scales
