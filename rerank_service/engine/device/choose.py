"""Chooses a replica's device, once for all its parts, and the replica's share of a GPU that several replicas use.

Ray reserves GPUs but isolates nothing: it shows a replica the GPUs or MIG slices that it may use, and replicas with a
fraction of a GPU all see the whole GPU.
"""

import logging
from functools import partial
from typing import NamedTuple

import torch

from rerank_service.engine.device import cuda
from rerank_service.engine.device.peak import peak_flops_per_s
from rerank_service.errors import CheckpointError

__all__ = ["ChosenDevice", "choose_device"]

logger = logging.getLogger(__name__)

_CONTEXT_BYTES = 600 * 2**20
"""Memory that a process needs on a GPU besides its tensors: CUDA's context, the code of kernels and the workspaces of
libraries. An estimate for Hopper GPUs, not measured."""
_SMALLEST_SHARE = 0.02


class ChosenDevice(NamedTuple):
    """The device of a replica, and its share of the device."""

    device: torch.device
    share: float = 1.0
    """1, or the fraction of a GPU that is reserved for the replica."""

    def limit_memory(self) -> None:
        """Limits the tensors of a replica that shares its GPU, so that replicas that start at the same time never take
        each other's memory. Call this before a model is loaded."""
        if self.share < 1:
            total = cuda.memory(self.device).total
            cuda.limit_memory(self.device, max(_SMALLEST_SHARE, self.share - _CONTEXT_BYTES / total))

    @property
    def memory_limit_bytes(self) -> int | None:
        """Memory that the replica may use on a GPU; null on a CPU."""
        return int(self.share * cuda.memory(self.device).total) if self.is_gpu else None

    @property
    def free_bytes(self) -> int:
        """Memory on a GPU that the replica can still use for a forward pass."""
        # What the allocator still holds afterwards belongs to tensors, to graphs, or to blocks that are partly in use.
        cuda.release_unused_memory()
        memory = cuda.memory(self.device)
        if self.share == 1:
            return memory.free
        own = int(self.share * memory.total) - _CONTEXT_BYTES - memory.reserved
        return max(0, min(memory.free, own))

    @property
    def peak_flops_per_s(self) -> float | None:
        """The replica's share of the device's dense bfloat16 peak; null for a CPU or an unknown GPU."""
        if not self.is_gpu:
            return None
        peak = peak_flops_per_s(cuda.name(self.device), partial(cuda.num_multiprocessors, self.device))
        return peak and peak * self.share

    @property
    def is_gpu(self) -> bool:
        return self.device.type != "cpu"


def choose_device(configured: str, num_gpus: float | None = None) -> ChosenDevice:
    """The device for `engine.device`, in a replica for which `num_gpus` are reserved. Null: not a replica.

    `auto` is a GPU if one is visible and the replica has reserved a part of it, else the CPU: Ray leaves all GPUs
    visible to a replica without GPUs. `cuda` is the first visible GPU. Raises `CheckpointError` if the configured GPU
    is not visible.
    """
    num_visible = cuda.num_visible()
    if configured == "auto":
        configured = "cuda" if num_visible and num_gpus != 0 else "cpu"
    if not configured.startswith("cuda"):
        return ChosenDevice(torch.device(configured))
    if not num_visible:
        raise CheckpointError(f"device {configured} is configured, but no GPU is visible; set device: auto or cpu")
    index = torch.device(configured).index or 0
    if index >= num_visible:
        raise CheckpointError(
            f"device {configured} is configured, but {num_visible} GPU(s) are visible, numbered from 0"
        )
    if num_gpus == 0:
        logger.warning(
            "device %s is configured, but replica.num_gpus is 0: every replica of the node uses this GPU as if it were "
            "alone; set replica.num_gpus",
            configured,
        )
    return ChosenDevice(torch.device("cuda", index), min(1.0, num_gpus or 1.0))
