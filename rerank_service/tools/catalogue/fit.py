"""Estimates how much memory a model needs, and whether this machine has enough.

    weights      parameters x 2 bytes on a GPU or on a CPU that computes in bfloat16, x 4 otherwise
    activations  tokens of a batch x (12 hidden_size + 7 intermediate_size) x the same bytes; a batch holds at least the
                 longest pair
    attention    only for models that store attention weights as matrices (DeBERTa): 5 x tokens x heads x longest pair x
                 the same bytes
    process      1 GB: Python, torch and transformers took 0.4 GB; the rest is for Ray's worker, or for a GPU context
                 (not measured)

On a CPU, batches of 3,584 tokens took 0.47 to 0.95 times the memory that these formulas give for activations and
attention (Qwen3 with the shape of the 0.6B in bfloat16 and float32; Qwen3, XLM-RoBERTa and DeBERTa with 4 layers).
While a model loads, the system also caches its file in memory, and frees this memory when it is needed. The
estimate helps to choose a model; a starting replica measures its GPU (`engine/device/memory.py`).
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rerank_service.config import default_batch_tokens
from rerank_service.tools.catalogue.models import KnownModel

__all__ = ["Fit", "Gpu", "Machine", "fit", "gigabytes", "needed_bytes", "sized", "this_machine"]

_HALF_BYTES, _FULL_BYTES = 2, 4
_PROCESS_BYTES = 1_000_000_000
_LAID_OUT_COPIES = 5
"""Matrices `[heads, L, L]` in memory at once: 5.1 were measured for a 4-layer DeBERTa-v2 in float32, with pairs of 512
tokens."""
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_CPUS = Path("/sys/fs/cgroup/cpu.max")


class Gpu(NamedTuple):
    """One GPU of a machine."""

    name: str
    memory_bytes: int


class Machine(NamedTuple):
    """The hardware that decides whether a machine can run a model."""

    memory_bytes: int
    """Memory of the machine, or the container's memory limit."""
    gpus: tuple[Gpu, ...]
    has_bfloat16: bool
    """Whether the CPU computes in bfloat16."""
    num_cpus: int = 1
    """CPUs that this process may use."""


class Fit(NamedTuple):
    """Whether a model runs on a machine, and on which device."""

    place: str | None
    """`GPU` or `CPU`; null if the model does not fit."""
    needed_bytes: int | None
    """Memory that the model needs on the device in `place`, or on the CPU if it does not fit; null if its size is
    unknown."""
    reason: str | None = None
    """Why the model does not fit."""
    is_slow: bool = False
    """Whether the model runs on a CPU but is made for a GPU."""


def this_machine(cgroup_limit: Path = _CGROUP_LIMIT) -> Machine:
    """Memory, GPUs and CPU precision of this machine. The file `cgroup_limit` has the memory limit of a container."""
    from rerank_service.engine.device import cuda  # imports torch, which takes seconds and the rest does not need
    from rerank_service.engine.device.precision import computes_bfloat16

    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = cgroup_limit.read_text().strip() if cgroup_limit.is_file() else "max"
    return Machine(
        memory_bytes=min(memory_bytes, int(limit)) if limit.isdecimal() else memory_bytes,
        gpus=tuple(Gpu(*gpu) for gpu in cuda.visible()),
        has_bfloat16=computes_bfloat16(),
        num_cpus=_num_cpus(),
    )


def _num_cpus(cgroup_quota: Path = _CGROUP_CPUS) -> int:
    """CPUs that the process may use, at most the container's quota, which also limits Ray's count of CPUs."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = (cgroup_quota.read_text().strip() if cgroup_quota.is_file() else "max").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        num_cpus = min(num_cpus, int(quota) // int(period))
    return max(1, num_cpus)


def sized(model: KnownModel, folder: Path) -> KnownModel:
    """`model` with the sizes that it lacks, read from the config.json and the safetensors headers in `folder`."""
    if model.num_parameters is not None:
        return model
    raw = _read_json(folder / "config.json")
    num_parameters = sum(math.prod(shape) for shape in _shapes(raw, folder))
    hidden = int(raw.get("hidden_size") or raw.get("dim") or 1024)
    limits = (raw.get("max_position_embeddings"), _read_json(folder / "tokenizer_config.json").get("model_max_length"))
    is_laid_out = str(raw.get("model_type")).startswith("deberta")
    return model.model_copy(
        update={
            "num_parameters": num_parameters,
            "hidden_size": hidden,
            "intermediate_size": int(raw.get("intermediate_size") or raw.get("hidden_dim") or 4 * hidden),
            "longest_tokens": int(min([limit for limit in limits if limit] or [512])),
            "laid_out_heads": int(raw.get("num_attention_heads") or 12) if is_laid_out else 0,
        }
    )


def _shapes(raw: dict[str, Any], folder: Path) -> Iterator[tuple[int, ...]]:
    """Shapes of all tensors, before they were quantised."""
    if raw.get("quantization_config"):
        from rerank_service.engine.loading import tensor_shapes  # imports torch, which only quantised files need

        yield from tensor_shapes(folder).values()
        return
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as tensors:
            yield from (tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _read_json(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return settings


def fit(model: KnownModel, machine: Machine) -> Fit:
    """The best place for `model` on `machine`."""
    if model.refusal is not None:
        return Fit(None, None, model.refusal)
    if model.num_parameters is None:
        missing = "; try the model" if model.hub_id else " and no public files were found; if you have them, try it"
        return Fit(None, None, f"its exact size is not published{missing}")
    on_gpu = needed_bytes(model, on_gpu=True, is_half=True)
    largest = max(machine.gpus, key=lambda gpu: gpu.memory_bytes, default=None)
    if largest is not None and largest.memory_bytes >= on_gpu:
        return Fit("GPU", on_gpu)
    on_cpu = needed_bytes(model, on_gpu=False, is_half=machine.has_bfloat16)
    if machine.memory_bytes >= on_cpu:
        return Fit("CPU", on_cpu, is_slow=bool(model.num_gpus))
    gpu = "no GPU" if largest is None else f"its largest GPU has {gigabytes(largest.memory_bytes)}"
    here = f"this machine has {gigabytes(machine.memory_bytes)} of memory, and {gpu}"
    return Fit(None, on_cpu, f"{here}; the model needs {gigabytes(on_cpu)}, or {gigabytes(on_gpu)} of GPU memory")


def needed_bytes(model: KnownModel, *, on_gpu: bool, is_half: bool) -> int:
    """Memory of one replica, by the formula in this file's docstring. Raises `ValueError` if the model's size is
    unknown."""
    if model.num_parameters is None or model.hidden_size is None or model.intermediate_size is None:
        raise ValueError(f"the size of {model.name} is unknown")
    width = _HALF_BYTES if is_half else _FULL_BYTES
    chosen_tokens = model.max_batch_tokens if on_gpu == bool(model.num_gpus) else None
    batch_tokens = max(chosen_tokens or default_batch_tokens(on_gpu=on_gpu), model.pair_tokens)
    activations = batch_tokens * (12 * model.hidden_size + 7 * model.intermediate_size)
    attention = _LAID_OUT_COPIES * batch_tokens * model.laid_out_heads * model.pair_tokens
    return width * (model.num_parameters + activations + attention) + _PROCESS_BYTES


def gigabytes(num_bytes: int) -> str:
    """A size in units of 10^9 bytes, for messages."""
    return f"{num_bytes / 1e9:.1f} GB"
