"""8-bit integer linear layers for a CPU, with scales that a calibration fixes when the model is loaded.

Faster than `int8.Int8Linear`, which computes a scale for each row: here, bias and GELU are computed inside the product,
and the two halves of a feed-forward network exchange bytes instead of floats. In return, values outside the calibrated
range are clipped. Needs AVX2 (`precision.multiplies_int8`).
"""

from typing import Literal, NamedTuple

import torch

from rerank_service.engine.linear.calibration import InputRange
from rerank_service.engine.linear.int8 import AROUND_ZERO, LARGEST, SMALLEST, ByteProduct, Grid
from rerank_service.engine.linear.packed import PackedLinear

__all__ = ["CalibratedInt8Linear", "DownProjection", "UpProjection", "quantise_feed_forward"]

_CHANNEL_SHARE = 0.75
"""Share of the spread between input channels that moves into the weights: alpha of SmoothQuant (arXiv 2211.10438)."""
_NUM_OUTLIERS = 16
"""Number of channels between the halves of a feed-forward network that stay floats, as in LLM.int8() (arXiv
2208.07339). In all-MiniLM-L6-v2, one or two of 1,536 channels have values four times as large as those of all other
channels; keeping these channels as floats halves the logit error."""
_TILE_ELEMENTS = 262_144
"""Elements per tile of inputs, few enough for the tile's float32 form to stay in the CPU cache."""


class _ByteInputs:
    """Converts floats `[..., K]` to bytes around 128. Each channel's scale multiplies the channel's weights."""

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
            # Writes through an int8 view, because torch converts to int8 seven times faster than to uint8.
            signed[tile] = scaled.clamp_(-LARGEST, LARGEST).round_()
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
    """Output of the first half of a feed-forward network, which is the input of the second half."""

    quantised: torch.Tensor  # [..., N] bytes
    outliers: torch.Tensor  # [..., O] floats


class UpProjection(torch.nn.Module):
    """First half of a feed-forward network, with its GELU: `[..., K]` floats to `_Halfway`."""

    def __init__(self, to_bytes: _ByteInputs, multiply: ByteProduct, outliers: PackedLinear) -> None:
        super().__init__()
        self._to_bytes = to_bytes
        self._multiply = multiply
        self._outliers = outliers

    def forward(self, inputs: torch.Tensor) -> _Halfway:
        return _Halfway(self._multiply(self._to_bytes(inputs)), self._outliers(inputs))


class DownProjection(torch.nn.Module):
    """Second half of a feed-forward network: `_Halfway` to floats `[..., K]`."""

    def __init__(self, multiply: ByteProduct, outliers: PackedLinear) -> None:
        super().__init__()
        self._multiply = multiply
        self._outliers = outliers

    def forward(self, halfway: _Halfway) -> torch.Tensor:
        return self._multiply(halfway.quantised).add_(self._outliers(halfway.outliers))


def quantise_feed_forward(
    up: torch.nn.Linear, down: torch.nn.Linear, inputs: InputRange, between: InputRange, states: torch.dtype
) -> tuple[UpProjection, DownProjection]:
    """`down(gelu(up(x)))` as two layers. `inputs` is the input range of `up`, and `between` the input range of
    `down`."""
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
    """A grid from the lowest to the highest value of all channels except the outliers; it represents zero exactly."""
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
