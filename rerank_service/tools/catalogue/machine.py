"""What this machine has that a model needs. Knows no model."""

import os
from pathlib import Path

import torch

from rerank_service.engine.device.precision import computes_bfloat16
from rerank_service.tools.catalogue.fit import Gpu, Machine

__all__ = ["this_machine"]

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def this_machine() -> Machine:
    """Memory, GPUs and precision, as they are now."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Machine(
        memory_bytes=min(_physical_bytes(), _container_bytes()),
        gpus=tuple(Gpu(gpu.name, gpu.total_memory) for gpu in gpus),
        has_bfloat16=computes_bfloat16(),
    )


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_bytes(limit: Path = _CGROUP_LIMIT) -> int:
    """What a container may use; all there is where no limit is set."""
    text = limit.read_text().strip() if limit.is_file() else "max"
    return int(text) if text.isdecimal() else _physical_bytes()
