"""Chooses the device, CPUs and replicas of each model for one machine.

On GPUs, a model gets one GPU per replica, and as many replicas as its share of the GPUs; if there are fewer GPUs than
replicas, replicas share a GPU. On CPUs, a replica gets one CPU per 50 million parameters, at least one and at most the
model's share of the CPUs, because a request to a large model takes too long on one CPU. For small models, many replicas
with one CPU each have more throughput than a few replicas with several CPUs each.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from rerank_service.config import Dtype
from rerank_service.errors import ConfigError
from rerank_service.tools.catalogue import KnownModel
from rerank_service.tools.catalogue.fit import Machine, gigabytes, needed_bytes
from rerank_service.tools.deployment.serve_yaml import Bounds

__all__ = ["DeviceChoice", "Placement", "place"]

_PARAMETERS_PER_CPU = 50_000_000
_MOST_PARAMETERS_ON_CPU = 200_000_000
"""Larger models are slow on a CPU: one pair of 512 tokens needs more than 0.2 TFLOP."""
_GPU_MODEL_CPUS = 4
_FIRST_REPLICAS = 2
"""Replicas of a CPU model that start at once; the autoscaler adds more under load."""
_WIDE = frozenset({Dtype.FLOAT32})
_NARROW = frozenset({Dtype.BFLOAT16, Dtype.FLOAT16, Dtype.INT8, Dtype.FLOAT8})


class DeviceChoice(StrEnum):
    """The device that a command was told to use."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Placement(NamedTuple):
    """Hardware and number of a model's replicas."""

    num_gpus: float
    num_cpus: float
    replicas: Bounds
    warning: str | None = None
    """A disadvantage of this placement, for people."""


def place(
    models: Sequence[KnownModel],
    machine: Machine,
    device: DeviceChoice = DeviceChoice.AUTO,
    dtype: Dtype | None = None,
    replicas: Mapping[str, Bounds] | None = None,
) -> list[Placement]:
    """The placement of each model. `replicas` are the numbers chosen by the user, by model id.

    Raises `ConfigError` if a model does not fit. A model of unknown size is assumed to fit.
    """
    chosen = replicas or {}
    if device is DeviceChoice.CUDA and not machine.gpus:
        raise ConfigError("--device cuda: this machine has no GPU that torch can use; use --device cpu or auto")
    candidates = [] if device is DeviceChoice.CPU or not machine.gpus else list(models)
    share = _gpu_share(candidates, machine, chosen)
    on_gpu = [model for model in candidates if _fits_a_gpu(model, machine, share, dtype)]
    if device is DeviceChoice.CUDA and (large := [model for model in models if model not in on_gpu]):
        raise ConfigError(_too_large_for_gpu(large[0], machine, share, dtype))
    on_cpu = [model for model in models if model not in on_gpu]
    if on_cpu:
        _require_memory(on_cpu, machine, dtype, chosen)
    gpu_bounds = {model.id: chosen.get(model.id) or _gpu_bounds(on_gpu, machine) for model in on_gpu}
    gpu_replicas = sum(one.max_replicas for one in gpu_bounds.values())
    gpu_cpus = _rounded(min(_GPU_MODEL_CPUS, machine.num_cpus / (gpu_replicas + len(on_cpu) or 1)))
    free_cpus = (machine.num_cpus - gpu_cpus * gpu_replicas) / max(1, len(on_cpu))
    free_bytes = machine.memory_bytes // max(1, len(on_cpu))
    has_gpu = bool(candidates)
    return [
        Placement(_gpus(share), gpu_cpus, gpu_bounds[model.id])
        if model.id in gpu_bounds
        else _on_cpu(model, _bytes(model, machine, dtype), chosen.get(model.id), free_cpus, free_bytes, has_gpu)
        for model in models
    ]


def _on_cpu(
    model: KnownModel, needed: int | None, chosen: Bounds | None, free_cpus: float, free_bytes: int, has_gpu: bool
) -> Placement:
    """`needed` is the memory of a replica; `free_cpus` and `free_bytes` are the model's share of the machine."""
    size = model.num_parameters or 0
    num_cpus = min(free_cpus, max(1, math.ceil(size / _PARAMETERS_PER_CPU)))
    warning = None
    if model.num_gpus or size > _MOST_PARAMETERS_ON_CPU:
        why = "it does not fit this machine's GPU" if has_gpu else "no GPU is used"
        warning = f"{model.name} is slow on a CPU; {why}"
    if chosen is not None:
        return Placement(0, _rounded(min(num_cpus, free_cpus / chosen.max_replicas)), chosen, warning)
    most = max(1, min(int(free_cpus // num_cpus), free_bytes // (needed or 1)))
    return Placement(0, _rounded(num_cpus), Bounds(min(_FIRST_REPLICAS, most), most), warning)


def _gpu_bounds(models: Sequence[KnownModel], machine: Machine) -> Bounds:
    return Bounds(1, max(1, len(machine.gpus) // len(models)))


def _gpu_share(models: Sequence[KnownModel], machine: Machine, chosen: Mapping[str, Bounds]) -> int:
    """Number of replicas that share one GPU when every model has its maximum number of replicas."""
    if not models:
        return 1
    default = _gpu_bounds(models, machine).max_replicas
    most = sum(chosen[model.id].max_replicas if model.id in chosen else default for model in models)
    return max(1, math.ceil(most / len(machine.gpus)))


def _gpus(share: int) -> float:
    return 1 if share == 1 else math.floor(100 / share) / 100


def _rounded(num_cpus: float) -> float:
    return float(int(num_cpus)) if num_cpus >= 1 else max(0.01, math.floor(num_cpus * 100) / 100)


def _fits_a_gpu(model: KnownModel, machine: Machine, share: int, dtype: Dtype | None) -> bool:
    needed = _bytes(model, machine, dtype, on_gpu=True)
    return needed is None or needed * share <= _gpu_bytes(machine)


def _gpu_bytes(machine: Machine) -> int:
    """Memory of the smallest GPU, because Ray may start a replica on any GPU."""
    return min(gpu.memory_bytes for gpu in machine.gpus)


def _bytes(model: KnownModel, machine: Machine, dtype: Dtype | None, *, on_gpu: bool = False) -> int | None:
    if model.num_parameters is None:
        return None
    is_half = dtype in _NARROW or (dtype not in _WIDE and (on_gpu or machine.has_bfloat16))
    return needed_bytes(model, on_gpu=on_gpu, is_half=is_half)


def _require_memory(
    models: Sequence[KnownModel], machine: Machine, dtype: Dtype | None, chosen: Mapping[str, Bounds]
) -> None:
    """Raises `ConfigError` if the replicas that start at once do not fit in the machine's memory."""
    first = {model.name: chosen[model.id].min_replicas if model.id in chosen else 1 for model in models}
    needed = {model.name: (_bytes(model, machine, dtype) or 0) * first[model.name] for model in models}
    total = sum(needed.values())
    if total <= machine.memory_bytes:
        return
    parts = " and ".join(
        f"{name} needs {gigabytes(size)} of memory" + (f" for {first[name]} replicas" if first[name] > 1 else "")
        for name, size in needed.items()
    )
    gpus = f", and {_gpu_words(machine)}" if machine.gpus else " and no GPU"
    raise ConfigError(
        f"{parts}; this machine has {gigabytes(machine.memory_bytes)}{gpus}. {_way_out(models, max(first.values()))}"
    )


def _too_large_for_gpu(model: KnownModel, machine: Machine, share: int, dtype: Dtype | None) -> str:
    needed = gigabytes(_bytes(model, machine, dtype, on_gpu=True) or 0)
    shared = f", shared by {share} replicas" if share > 1 else ""
    available = _gpu_words(machine, "this machine's")
    return (
        f"{model.name} needs {needed} of GPU memory; {available}{shared}. "
        f"{_way_out([model], share)}, or use --device auto"
    )


def _gpu_words(machine: Machine, owner: str = "its") -> str:
    which = "GPU" if len(machine.gpus) == 1 else "smallest GPU"
    return f"{owner} {which} has {gigabytes(_gpu_bytes(machine))}"


def _way_out(models: Sequence[KnownModel], replicas: int) -> str:
    fewer = "lower --replicas or " if replicas > 1 else "serve fewer models or " if len(models) > 1 else ""
    return f"{fewer}choose a smaller model (`rerank-service models` shows which fit)".capitalize()
