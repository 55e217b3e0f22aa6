"""How much memory a known model needs, and whether a machine has it (pure).

    weights      parameters x 2 bytes on a GPU or a CPU that computes in bfloat16, x 4 elsewhere
    activations  tokens of a batch x (12 hidden + 7 intermediate) x the same bytes; a batch is never less than the
                 longest pair
    attention    only where its weights are laid out (DeBERTa): 5 x tokens x heads x longest pair x the same bytes
    process      1 GB: Python, torch and transformers took 0.4 GB, the rest is set aside for Ray's worker; or for a
                 GPU's context, not measured

Batches of 3,584 tokens on a CPU took 0.47 to 0.95 of the two middle lines (Qwen3 of the 0.6B's shape in bfloat16 and
float32; Qwen3, XLM-RoBERTa and DeBERTa of 4 layers). While a model loads, the pages of its file come on top, which the
system takes back.
An estimate to choose by. What a GPU really holds is measured when a replica starts (`engine/memory.py`).
"""

from typing import NamedTuple

from rerank_service.config import default_batch_tokens
from rerank_service.tools.catalogue.models import KnownModel

__all__ = ["Fit", "Gpu", "Machine", "fit", "gigabytes", "needed_bytes"]

_HALF_BYTES, _FULL_BYTES = 2, 4
_PROCESS_BYTES = 1_000_000_000
_LAID_OUT_COPIES = 5
"""Measured: 5.1 of `[heads, L, L]` at once, for DeBERTa-v2 of 4 layers in float32 with pairs of 512 tokens."""


class Gpu(NamedTuple):
    """One GPU of a machine."""

    name: str
    memory_bytes: int


class Machine(NamedTuple):
    """What decides whether a model runs here."""

    memory_bytes: int
    """Of the whole machine, or what this container may use of it."""
    gpus: tuple[Gpu, ...]
    has_bfloat16: bool
    """Whether its CPU computes in it."""


class Fit(NamedTuple):
    """Whether a model runs on a machine, and where."""

    place: str | None
    """`GPU` or `CPU`; null: nowhere here."""
    needed_bytes: int | None
    """Of that place's memory, or of the CPU's where it fits nowhere; null: its size is not known."""
    reason: str | None = None
    """Why nowhere."""
    is_slow: bool = False
    """Whether it is made for better hardware."""


def fit(model: KnownModel, machine: Machine) -> Fit:
    """The best place that `machine` has for `model`."""
    if model.refusal is not None:
        return Fit(None, None, model.refusal)
    if model.num_parameters is None:
        return Fit(None, None, "its size is not published, nor are its files: with its folder, try it")
    on_gpu = needed_bytes(model, on_gpu=True, is_half=True)
    largest = max(machine.gpus, key=lambda gpu: gpu.memory_bytes, default=None)
    if largest is not None and largest.memory_bytes >= on_gpu:
        return Fit("GPU", on_gpu)
    on_cpu = needed_bytes(model, on_gpu=False, is_half=machine.has_bfloat16)
    if machine.memory_bytes >= on_cpu:
        return Fit("CPU", on_cpu, is_slow=bool(model.num_gpus))
    gpu = "no GPU" if largest is None else f"its largest GPU has {gigabytes(largest.memory_bytes)}"
    here = f"this machine has {gigabytes(machine.memory_bytes)} of memory, and {gpu}"
    return Fit(None, on_cpu, f"{here}; it takes {gigabytes(on_cpu)}, or {gigabytes(on_gpu)} of a GPU")


def needed_bytes(model: KnownModel, *, on_gpu: bool, is_half: bool) -> int:
    """Memory of one replica, by the formula above; ValueError for a model whose size is not known."""
    if model.num_parameters is None or model.hidden_size is None or model.intermediate_size is None:
        raise ValueError(f"the size of {model.name} is not known")
    width = _HALF_BYTES if is_half else _FULL_BYTES
    chosen_tokens = model.max_batch_tokens if on_gpu == bool(model.num_gpus) else None
    batch_tokens = max(chosen_tokens or default_batch_tokens(on_gpu=on_gpu), model.pair_tokens)
    activations = batch_tokens * (12 * model.hidden_size + 7 * model.intermediate_size)
    attention = _LAID_OUT_COPIES * batch_tokens * model.laid_out_heads * model.pair_tokens
    return width * (model.num_parameters + activations + attention) + _PROCESS_BYTES


def gigabytes(num_bytes: int) -> str:
    """As people read it, in units of 10^9."""
    return f"{num_bytes / 1e9:.1f} GB"
