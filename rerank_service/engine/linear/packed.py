"""CPU linear layers that pack their weights for oneDNN once, with GELU fused into the product.

`torch.nn.Linear` packs its weights in every call (in float32, with MKL). Packing them once has two advantages:

- Speed: 223 instead of 192 GFLOP/s in float32, and 433 instead of 375 in bfloat16; with GELU in float32, 209 instead of
  116 (4096 x 384 x 1536, two threads of an AMD EPYC with AVX512-BF16, torch 2.13.0; docs/decisions/0005).
- Reproducibility: a row's result does not depend on the number of rows, so a pair's logit is the same to the last bit
  in every batch.

torch's own compiler emits the same operators for frozen models. Without AVX-512, oneDNN's GELU takes twice as long as
torch's, so GELU is applied afterwards there.
"""

from functools import cache
from typing import Literal

import torch

__all__ = ["PackedLinear", "can_pack"]

_DTYPES = (torch.float32, torch.bfloat16)
_TYPICAL_ROWS = 4096
"""Number of input rows for which oneDNN lays out the weights; any other number works too."""


class PackedLinear(torch.nn.Module):
    """`activation(x @ weight.T + bias)` for inference: `[..., K]` to `[..., N]`."""

    def __init__(self, linear: torch.nn.Linear, activation: Literal["none", "gelu"] = "none") -> None:
        super().__init__()
        self._gelu_after = activation == "gelu" and torch.backends.cpu.get_cpu_capability() != "AVX512"
        self._activation = "none" if self._gelu_after else activation
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TYPICAL_ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        is_one_row = inputs.numel() == inputs.size(-1)
        if is_one_row:  # for a single row, oneDNN uses another kernel that rounds differently
            inputs = inputs.expand(2, *inputs.shape).contiguous()
        outputs: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._packed, self._bias, self._activation, [], "none" if self._activation == "gelu" else ""
        )
        if self._gelu_after:
            torch.ops.aten.gelu_(outputs)
        return outputs[0] if is_one_row else outputs


@cache
@torch.inference_mode()
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch can multiply packed weights of this type on this processor.

    bfloat16 needs AVX-512; float32 was found to work with AVX2 alone.
    """
    if dtype not in _DTYPES:
        return False
    try:
        PackedLinear(torch.nn.Linear(8, 8).to(dtype))(torch.zeros(2, 8, dtype=dtype))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True
