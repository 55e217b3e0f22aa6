"""The largest speed that a GPU could reach: operations of a forward pass, and the rates of large matrix products."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Operations", "Rates", "measure_rates", "operations"]

_PRODUCT_SIZE = 8192
"""Size of the square matrices in the reference products. Products of this size are assumed to reach a GPU's
largest rate: about 800 of the 989 TFLOP/s of an H100 in bfloat16 (estimated)."""
_CPU_PRODUCT_SIZE = 512


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a forward pass, two per multiply-add. Only matrix products count."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        """All operations."""
        return self.linear + self.attention


@dataclass(frozen=True)
class Rates:
    """Operations per second in large matrix products, measured in the same run."""

    bfloat16: float
    float8: float | None
    """Null: this machine does not multiply 8-bit floats."""

    def least_seconds(self, work: Operations, precision: str) -> float:
        """Time of a pass at these rates. Attention multiplies in bfloat16 even if the linear layers use float8."""
        linear = self.float8 if precision == "float8" and self.float8 else self.bfloat16
        return work.linear / linear + work.attention / self.bfloat16


def operations(config: dict[str, Any], lengths: Sequence[int]) -> Operations:
    """Operations of a decoder of this config.json for sequences of these lengths."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * (config.get("head_dim") or hidden // config["num_attention_heads"])
    key = query * config["num_key_value_heads"] // config["num_attention_heads"]
    per_token = 2 * (hidden * (query + 2 * key) + query * hidden + 3 * hidden * inner)
    layers = config["num_hidden_layers"]
    attention = 4 * query * sum(length**2 for length in lengths)
    return Operations(float(layers * per_token * sum(lengths)), float(layers * attention))


def measure_rates(device: str) -> Rates:
    """Rates on `device`. 8-bit floats are multiplied as in `Float8Linear`, with a scale for each row and column."""
    size = _PRODUCT_SIZE if device.startswith("cuda") else _CPU_PRODUCT_SIZE
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    bfloat16 = _rate(lambda: left @ right, size, device)
    if not device.startswith("cuda"):
        return Rates(bfloat16, None)
    narrow = [tensor.to(torch.float8_e4m3fn) for tensor in (left, right)]
    scales = torch.ones(size, 1, device=device)
    try:
        float8 = _rate(
            lambda: torch._scaled_mm(
                *(narrow[0], narrow[1].T, scales, scales.T), out_dtype=torch.bfloat16, use_fast_accum=True
            ),
            *(size, device),
        )
    except (RuntimeError, NotImplementedError) as problem:
        print(f"no 8-bit products on this GPU: {str(problem).splitlines()[0]}", flush=True)
        return Rates(bfloat16, None)
    return Rates(bfloat16, float8)


def _rate(multiply: Callable[[], torch.Tensor], size: int, device: str, repeats: int = 10) -> float:
    """Operations per second, from the fastest of five series of products."""
    taken = []
    for _ in range(6):
        started = time.perf_counter()
        for _ in range(repeats):
            multiply()
        if device.startswith("cuda"):
            torch.cuda.synchronize(torch.device(device))
        taken.append(time.perf_counter() - started)
    return 2.0 * size**3 * repeats / min(taken[1:])
