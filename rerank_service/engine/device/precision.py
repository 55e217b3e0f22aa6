"""The number types in which a model computes, and whether this machine supports them."""

from dataclasses import dataclass

import torch

from rerank_service.config import Dtype
from rerank_service.errors import CheckpointError

__all__ = ["Precision", "computes_bfloat16", "multiplies_int8", "resolve_precision"]

_QUANTISED = (Dtype.INT8, Dtype.FLOAT8)
_BFLOAT16_CAPABILITY = (8, 0)  # Ampere
_FLOAT8_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0


@dataclass(frozen=True, slots=True)
class Precision:
    """Number types of a forward pass; pooling and the head always compute in float32."""

    states: torch.dtype
    """Type of token states and of all weights that are not quantised."""
    quantised: Dtype | None = None
    """Type in which the transformer's linear layers multiply, `int8` or `float8`; null: the type of `states`."""

    @property
    def name(self) -> str:
        """The coarsest type in use, which determines the accuracy of logits."""
        return self.quantised.value if self.quantised else str(self.states).removeprefix("torch.")

    def __str__(self) -> str:
        states = str(self.states).removeprefix("torch.")
        return f"{self.quantised.value} with {states} states" if self.quantised else states


def resolve_precision(dtype: Dtype, device: torch.device) -> Precision:
    """The number types that `dtype` selects on `device`. Raises `CheckpointError` if the hardware lacks them.

    `auto` is bfloat16 if the hardware supports it, else float32 on a CPU and float16 on a GPU. `fastest` is int8 on a
    CPU that supports it, else the same as `auto`.
    """
    if dtype is Dtype.FASTEST:
        dtype = Dtype.INT8 if device.type == "cpu" and multiplies_int8() else Dtype.AUTO
    if dtype in _QUANTISED:
        _refuse_unless_possible(dtype, device)
        return Precision(_fastest_float(device), dtype)
    if dtype is Dtype.AUTO:
        return Precision(_fastest_float(device))
    return Precision(getattr(torch, dtype.value))


def multiplies_int8() -> bool:
    """Whether oneDNN multiplies bytes faster than floats on this CPU: an x86 processor with AVX2 or AVX-512.

    VNNI makes the products faster, but it is not required (`int8._largest_pairs`).
    """
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def computes_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions and torch uses AVX-512. Without them, bfloat16 is several times slower
    than float32.
    """
    # These functions are private, but torch offers no public ones.
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return _uses_avx512() and bool(has_instructions)


def _uses_avx512() -> bool:
    """Whether torch's kernels use AVX-512. `ATEN_CPU_CAPABILITY=avx2` turns AVX-512 off on a processor that has it."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _fastest_float(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY
        return torch.bfloat16 if has_bfloat16 else torch.float16
    return torch.bfloat16 if computes_bfloat16() else torch.float32


def _refuse_unless_possible(dtype: Dtype, device: torch.device) -> None:
    if dtype is Dtype.INT8 and device.type != "cpu":
        raise CheckpointError("dtype int8 is for a CPU; on a GPU set float8 (Ada, Hopper or newer) or bfloat16")
    if dtype is Dtype.INT8 and not multiplies_int8():
        raise CheckpointError(
            "dtype int8 needs an x86 CPU with AVX2, which this CPU lacks or ATEN_CPU_CAPABILITY turns off; "
            "set dtype: auto"
        )
    if (
        dtype is Dtype.FLOAT8
        and device.type == "cuda"
        and torch.cuda.get_device_capability(device) < _FLOAT8_CAPABILITY
    ):
        raise CheckpointError("dtype float8 needs an Ada, Hopper or newer GPU; set dtype: auto")
