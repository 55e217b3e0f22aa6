"""Linear layers on a CPU in 8-bit integers: weights once per output channel, inputs anew row by row.

A row is divided by its own largest value, so nothing is calibrated and no row depends on another: integer sums
are exact, whatever the batch. Needs VNNI (`precision.multiplies_int8`). Knows nothing of any model.
"""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows

__all__ = ["Int8Linear"]

_LARGEST = 127
_ZERO_POINT = 128
"""oneDNN's fast kernels take unsigned inputs only; signed ones fall to a reference path, 4,000 times slower."""
_TILE_ELEMENTS = 786_432
"""Rows are taken in tiles whose float32 intermediates stay in the cache: 512 rows of 1,536."""


class Int8Linear(torch.nn.Module):
    """`activation(x @ weight.T + bias)` for inference: `[..., K]` to `[..., N]`, in the dtype of the input."""

    def __init__(self, linear: torch.nn.Linear, activation: Literal["none", "gelu"] = "none") -> None:
        super().__init__()
        weight = linear.weight.detach().float()  # [N, K]
        self._activation = activation
        self._num_outputs = linear.out_features
        self._tile_rows = max(16, _TILE_ELEMENTS // max(linear.in_features, linear.out_features))
        self._scales = (weight.abs().amax(1) / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)  # [N]
        quantised = (weight / self._scales[:, None]).round().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(quantised, [self._tile_rows, linear.in_features])
        self._zero_points = torch.zeros(linear.out_features, dtype=torch.int32)
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach().float()
        self._bias = bias  # [N]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.size(-1))
        outputs = torch.empty(len(rows), self._num_outputs, dtype=inputs.dtype)
        for start in range(0, len(rows), self._tile_rows):
            tile = slice(start, start + self._tile_rows)
            outputs[tile] = self._multiply(rows[tile])
        return outputs.view(*inputs.shape[:-1], self._num_outputs)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        quantised, scales = _quantise_rows(rows.float())
        products = torch.ops.onednn.qlinear_pointwise(
            *(quantised, 1.0, _ZERO_POINT),
            *(self._packed, self._scales, self._zero_points),
            *(None, 1.0, 0, torch.float32),  # no bias yet: it must not be multiplied by the row's scale
            *("none", [], ""),
        )
        outputs = torch.addcmul(self._bias, products, scales)
        return F.gelu(outputs) if self._activation == "gelu" else outputs


def _quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[R, K]` float32 to unsigned bytes around 128, and the scale of each row `[R, 1]`."""
    scales = (rows.abs().amax(1, keepdim=True) / _LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
    signed = (rows / scales).round_().to(torch.int8)  # to int8 first: torch converts to uint8 seven times slower
    return signed.view(torch.uint8).bitwise_xor_(_ZERO_POINT), scales
