"""Linear layers on a CPU in 8-bit integers: weights once per output channel, inputs anew row by row.

A row is divided by its own largest value, so nothing is calibrated and no row depends on another: integer sums
are exact, whatever the batch. Needs VNNI (`precision.multiplies_int8`). Knows nothing of any model.
"""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows

from rerank_service.engine.linear.byte_product import AROUND_ZERO, LARGEST, SMALLEST, ByteProduct

__all__ = ["Int8Linear"]

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
        self._multiply = ByteProduct(weight, None, AROUND_ZERO, torch.float32)  # the bias must not meet a row's scale
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach().float()
        self._bias = bias  # [N]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.size(-1))
        outputs = torch.empty(len(rows), self._num_outputs, dtype=inputs.dtype)
        for start in range(0, len(rows), self._tile_rows):
            tile = slice(start, start + self._tile_rows)
            outputs[tile] = self._product(rows[tile])
        return outputs.view(*inputs.shape[:-1], self._num_outputs)

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        quantised, scales = _quantise_rows(rows.float())
        outputs = torch.addcmul(self._bias, self._multiply(quantised), scales)
        return F.gelu(outputs) if self._activation == "gelu" else outputs


def _quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[R, K]` float32 to unsigned bytes around 128, and the scale of each row `[R, 1]`."""
    scales = (rows.abs().amax(1, keepdim=True) / LARGEST).clamp_min_(SMALLEST)
    signed = (rows / scales).round_().to(torch.int8)  # to int8 first: torch converts to uint8 seven times slower
    return signed.view(torch.uint8).bitwise_xor_(AROUND_ZERO.zero_point), scales
