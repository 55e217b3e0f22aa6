"""What this machine's GPU multiplies a second at most. Knows nothing of any model."""

from functools import cache

import torch

from rerank_service.engine.device.gpus import gpu_called

__all__ = ["peak_flops"]


@cache
def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 peak of a GPU, in FLOP/s; null if it is not known, and on a CPU."""
    if device.type != "cuda":
        return None
    gpu = gpu_called(torch.cuda.get_device_name(device))
    return gpu and gpu.peak_flops
