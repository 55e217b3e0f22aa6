"""The number types in which a model computes, and which of them this machine supports."""

import os
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rerank_service.config import Dtype
from rerank_service.errors import CheckpointError

__all__ = [
    "INSTRUCTION_SETS",
    "InstructionSet",
    "Precision",
    "allowed_precisions",
    "computes_bfloat16",
    "instruction_set",
    "multiplies_int8",
]

_BFLOAT16_CAPABILITY = (8, 0)  # Ampere
_FLOAT8_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0


@dataclass(frozen=True, slots=True)
class Precision:
    """Number types of a forward pass; pooling and the head always compute in float32."""

    states: torch.dtype
    """Type of token states and of all weights that are not quantised."""
    quantised: Dtype | None = None
    """Type in which the transformer's linear layers multiply, `int8` or `float8`; null: the type of `states`."""
    is_trainable: bool = False
    """Whether all layers stay as transformers made them, so gradients can pass through them (`tools/tune`)."""

    @property
    def name(self) -> str:
        """The coarsest type in use, which determines the accuracy of logits."""
        return self.quantised.value if self.quantised else str(self.states).removeprefix("torch.")

    def __str__(self) -> str:
        states = str(self.states).removeprefix("torch.")
        return f"{self.quantised.value} with {states} states" if self.quantised else states


class InstructionSet(NamedTuple):
    """Vector instructions of a CPU, and the types besides float32 in which the engine computes with them."""

    name: str
    flags: tuple[str, ...]
    """Names in `torch.cpu.get_capabilities()`; a CPU must have all of them."""
    in_use: tuple[str, ...]
    """Values of `_vectors_in_use()`. Empty: any value."""
    bfloat16: bool
    int8: bool


INSTRUCTION_SETS = (
    InstructionSet("AMX", ("amx_bf16", "amx_int8"), ("AVX512",), bfloat16=True, int8=True),
    InstructionSet("AVX512-BF16", ("avx512_bf16",), ("AVX512",), bfloat16=True, int8=True),
    InstructionSet("AVX512-VNNI", ("avx512_vnni",), ("AVX512",), bfloat16=False, int8=True),
    InstructionSet("AVX-512", (), ("AVX512",), bfloat16=False, int8=True),
    InstructionSet("AVX-VNNI", ("avx_vnni",), ("AVX2",), bfloat16=False, int8=True),
    InstructionSet("AVX2", (), ("AVX2",), bfloat16=False, int8=True),
    InstructionSet("ARM with i8mm and bf16", ("i8mm", "bf16"), (), bfloat16=False, int8=False),
    InstructionSet("ARM NEON", ("neon",), (), bfloat16=False, int8=False),
    InstructionSet("none of these", (), (), bfloat16=False, int8=False),
)
"""What runs on each CPU, the most capable first. Without AVX-512, bfloat16 is several times slower than float32. On
ARM, nothing but float32 has been tried, so nothing else is chosen there (docs/decisions/0021)."""


def instruction_set() -> InstructionSet:
    """The first of `INSTRUCTION_SETS` that this CPU has and torch uses."""
    has, in_use = torch.cpu.get_capabilities(), _vectors_in_use()
    return next(
        one for one in INSTRUCTION_SETS if all(map(has.get, one.flags)) and (not one.in_use or in_use in one.in_use)
    )


def _vectors_in_use() -> str:
    """`DEFAULT`, `AVX2` or `AVX512`: the least of what torch's own kernels use, which `ATEN_CPU_CAPABILITY` lowers, and
    what oneDNN's use, which `ONEDNN_MAX_CPU_ISA` lowers, or `DNNL_MAX_CPU_ISA` if that is not set."""
    torchs = torch.backends.cpu.get_cpu_capability()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if limit.upper() in ("SSE41", "AVX"):
        return "DEFAULT"
    return "AVX2" if limit.upper().startswith("AVX2") and torchs == "AVX512" else torchs


def allowed_precisions(dtype: Dtype, device: torch.device) -> tuple[Precision, ...]:
    """The precisions that `dtype` allows on `device`, from the most accurate to the fastest by its instructions.

    Replicas on other hardware may share only some of them. Raises `CheckpointError` if the hardware supports none.
    """
    floats = _float_types(device)
    match dtype:
        case Dtype.AUTO:
            return tuple(map(Precision, floats))
        case Dtype.FASTEST:
            quantises = device.type == "cpu" and multiplies_int8()
            return tuple(map(Precision, floats)) + (_quantised(Dtype.INT8, floats) if quantises else ())
        case Dtype.INT8 | Dtype.FLOAT8:
            _refuse_unless_possible(dtype, device)
            return _quantised(dtype, floats if device.type == "cpu" else floats[-1:])
        case _:
            return (Precision(getattr(torch, dtype.value)),)


def multiplies_int8() -> bool:
    """Whether oneDNN multiplies bytes faster than floats on this CPU: an x86 processor with AVX2 or AVX-512.

    VNNI makes the products faster, but it is not required (`int8._largest_pairs`).
    """
    return torch.backends.mkldnn.is_available() and instruction_set().int8


def computes_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions and torch uses AVX-512. Without them, bfloat16 is several times slower
    than float32.
    """
    return instruction_set().bfloat16


def _quantised(dtype: Dtype, floats: tuple[torch.dtype, ...]) -> tuple[Precision, ...]:
    return tuple(Precision(states, dtype) for states in floats)


def _float_types(device: torch.device) -> tuple[torch.dtype, ...]:
    """The types that the device computes fast, the most accurate first."""
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY
        return (torch.float16, torch.bfloat16) if has_bfloat16 else (torch.float16,)
    return (torch.float32, torch.bfloat16) if computes_bfloat16() else (torch.float32,)


def _refuse_unless_possible(dtype: Dtype, device: torch.device) -> None:
    if dtype is Dtype.INT8 and device.type != "cpu":
        raise CheckpointError("dtype int8 is for a CPU; on a GPU set float8 (Ada, Hopper or newer) or bfloat16")
    if dtype is Dtype.INT8 and not multiplies_int8():
        raise CheckpointError(
            "dtype int8 needs an x86 CPU with AVX2, which this CPU lacks, or ATEN_CPU_CAPABILITY or ONEDNN_MAX_CPU_ISA "
            "turns off; set dtype: auto"
        )
    if (
        dtype is Dtype.FLOAT8
        and device.type == "cuda"
        and torch.cuda.get_device_capability(device) < _FLOAT8_CAPABILITY
    ):
        raise CheckpointError("dtype float8 needs an Ada, Hopper or newer GPU; set dtype: auto")
