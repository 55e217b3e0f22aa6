"""Linear layers on a CPU in 8-bit integers with scales fixed at load, so that a product ends in finished states.

Beside `int8_linear.py`, which measures every row: bias and GELU are computed inside the product, and between the
halves of a feed-forward network bytes are all that is written. The price is a calibration: what lies outside of its
range is clipped. Needs VNNI (`precision.multiplies_int8`). Knows nothing of any model.
"""

from typing import Literal, NamedTuple

import torch

from rerank_service.engine.linear.byte_product import AROUND_ZERO, LARGEST, SMALLEST, ByteProduct, Grid
from rerank_service.engine.linear.calibration import InputRange
from rerank_service.engine.linear.cpu import PackedLinear

__all__ = ["CalibratedInt8Linear", "DownProjection", "UpProjection", "quantise_feed_forward"]

_CHANNEL_SHARE = 0.75
"""How much of the spread between input channels the weights take over: alpha of SmoothQuant (arXiv 2211.10438)."""
_NUM_OUTLIERS = 16
"""Channels between the halves of a feed-forward network that are not quantised, as in LLM.int8() (arXiv 2208.07339).
In all-MiniLM-L6-v2 one or two of 1,536 reach four times as far as all others: without these, half the logit error."""
_TILE_ELEMENTS = 262_144
"""Inputs are converted in tiles whose float32 form stays in the cache."""


class _ByteInputs:
    """Floats `[..., K]` to bytes around 128: every channel has its own scale, to be multiplied into its weights."""

    def __init__(self, inputs: InputRange, weight: torch.Tensor) -> None:
        largest = torch.maximum(-inputs.lowest, inputs.highest).clamp_min(SMALLEST)  # [K]
        spread = largest**_CHANNEL_SHARE / weight.abs().amax(0).clamp_min(SMALLEST) ** (1 - _CHANNEL_SHARE)
        self.scales = spread * (largest / spread).max() / LARGEST  # [K]
        self._inverse = 1 / self.scales

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = torch.empty(inputs.shape, dtype=torch.uint8)
        rows, signed = inputs.reshape(-1, inputs.size(-1)), outputs.view(torch.int8).view(-1, inputs.size(-1))
        tile_rows = max(16, _TILE_ELEMENTS // inputs.size(-1))
        for start in range(0, len(rows), tile_rows):
            tile = slice(start, start + tile_rows)
            scaled = rows[tile].float().mul(self._inverse)
            signed[tile] = scaled.clamp_(-LARGEST, LARGEST).round_()  # to uint8 torch converts seven times slower
        return outputs.bitwise_xor_(AROUND_ZERO.zero_point)


class CalibratedInt8Linear(torch.nn.Module):
    """`activation(x @ weight.T + bias)` for inference: `[..., K]` to `[..., N]` of type `states`."""

    def __init__(
        self,
        linear: torch.nn.Linear,
        inputs: InputRange,
        states: torch.dtype,
        activation: Literal["none", "gelu"] = "none",
    ) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self._to_bytes = _ByteInputs(inputs, weight)
        self._multiply = ByteProduct(weight * self._to_bytes.scales, linear.bias, AROUND_ZERO, states, activation)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._multiply(self._to_bytes(inputs))


class _Halfway(NamedTuple):
    """What the first half of a feed-forward network hands to the second."""

    quantised: torch.Tensor  # [..., N] bytes
    outliers: torch.Tensor  # [..., O] floats


class UpProjection(torch.nn.Module):
    """The first half, with its GELU."""

    def __init__(self, to_bytes: _ByteInputs, multiply: ByteProduct, outliers: PackedLinear) -> None:
        super().__init__()
        self._to_bytes = to_bytes
        self._multiply = multiply
        self._outliers = outliers

    def forward(self, inputs: torch.Tensor) -> _Halfway:
        return _Halfway(self._multiply(self._to_bytes(inputs)), self._outliers(inputs))


class DownProjection(torch.nn.Module):
    """The second half: floats again."""

    def __init__(self, multiply: ByteProduct, outliers: PackedLinear) -> None:
        super().__init__()
        self._multiply = multiply
        self._outliers = outliers

    def forward(self, halfway: _Halfway) -> torch.Tensor:
        return self._multiply(halfway.quantised).add_(self._outliers(halfway.outliers))


def quantise_feed_forward(
    up: torch.nn.Linear, down: torch.nn.Linear, inputs: InputRange, between: InputRange, states: torch.dtype
) -> tuple[UpProjection, DownProjection]:
    """`down(gelu(up(x)))` in two halves; `between` are the ranges of what `down` takes."""
    outliers = between.highest.topk(min(_NUM_OUTLIERS, up.out_features)).indices
    grid = _grid_of(between, outliers)
    up_weight, down_weight = up.weight.detach().float(), down.weight.detach().float()
    to_bytes = _ByteInputs(inputs, up_weight)
    multiply_up = ByteProduct(up_weight * to_bytes.scales, up.bias, AROUND_ZERO, grid, "gelu")
    multiply_down = ByteProduct(down_weight.index_fill(1, outliers, 0), down.bias, grid, states)
    up_outliers = _packed(up_weight[outliers], None if up.bias is None else up.bias[outliers], states, "gelu")
    down_outliers = _packed(down_weight[:, outliers], None, states)
    return UpProjection(to_bytes, multiply_up, up_outliers), DownProjection(multiply_down, down_outliers)


def _grid_of(values: InputRange, outliers: torch.Tensor) -> Grid:
    """From the lowest to the highest value of all channels but the outliers, with zero on it."""
    lowest = values.lowest.index_fill(0, outliers, 0).min().item()
    highest = values.highest.index_fill(0, outliers, 0).max().item()
    scale = max(highest - lowest, SMALLEST) / 255
    return Grid(scale, round(-lowest / scale))


def _packed(
    weight: torch.Tensor, bias: torch.Tensor | None, states: torch.dtype, activation: Literal["none", "gelu"] = "none"
) -> PackedLinear:
    linear = torch.nn.Linear(weight.size(1), len(weight), bias=bias is not None, dtype=states)
    linear.weight.data = weight.to(states)
    if bias is not None:
        linear.bias.data = bias.detach().to(states)
    return PackedLinear(linear, activation)
