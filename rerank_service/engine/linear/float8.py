"""Linear layers in 8-bit floats (e4m3), with a scale for each output channel and for each row of the input.

For Ada, Hopper and newer GPUs. A CPU multiplies the same numbers in float32. This emulation is slow, but with it the
errors of logits can be measured without a GPU. A row's result does not depend on the other rows of the batch.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from rerank_service.engine.device.kernels import multiply_float8
from rerank_service.engine.linear.packed import PackedLinear, can_pack

__all__ = ["Float8Linear", "can_be_float8"]

_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max  # 448
_ALIGNMENT = 16
"""Tensor cores multiply only rows whose length in bytes is a multiple of this number."""


def can_be_float8(linear: torch.nn.Linear) -> bool:
    """Whether a GPU can run a layer of this shape in 8 bits."""
    return linear.in_features % _ALIGNMENT == 0 and linear.out_features % _ALIGNMENT == 0


class Float8Linear(torch.nn.Module):
    """`x @ weight.T + bias` for inference: `[..., K]` to `[..., N]`, in the dtype of the input."""

    def __init__(self, linear: torch.nn.Linear, activation: str = "none") -> None:
        super().__init__()
        weight, scales = _quantise_rows(linear.weight.detach())  # [N, K], [N, 1]
        self._activation = activation
        self.register_buffer("_weight", weight, persistent=False)
        self.register_buffer("_scales", scales.T.contiguous(), persistent=False)  # [1, N]
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._emulated = _float32_product(weight) if weight.device.type == "cpu" else None
        if self._emulated is None and self._bias is not None:
            self._bias = self._bias.to(torch.bfloat16)  # the only type that the kernel adds to its bfloat16 outputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.size(-1))
        outputs = self._multiply(rows).view(*inputs.shape[:-1], -1)
        return F.gelu(outputs) if self._activation == "gelu" else outputs

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        weight: Any = self._weight
        column_scales: Any = self._scales
        quantised, row_scales = _quantise_rows(rows)
        if self._emulated is not None:
            outputs: torch.Tensor = self._emulated(quantised.float()) * row_scales * column_scales
            return (outputs if self._bias is None else outputs + self._bias).to(rows.dtype)
        return multiply_float8(quantised, weight, row_scales, column_scales, self._bias).to(rows.dtype)


def _float32_product(weight: torch.Tensor) -> torch.nn.Module:
    """A layer that computes `x @ weight.T` in float32, on unscaled 8-bit weights `[N, K]`."""
    linear = torch.nn.Linear(weight.size(1), weight.size(0), bias=False).requires_grad_(False)
    linear.weight.copy_(weight.float())
    return PackedLinear(linear) if can_pack(torch.float32) else linear


def _quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Converts rows `[R, K]` to 8-bit floats; also returns the float32 scale of each row, `[R, 1]`."""
    scales = (rows.abs().amax(1, keepdim=True).float() / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (rows.float() / scales).clamp(-_LARGEST, _LARGEST).to(_FLOAT8), scales
