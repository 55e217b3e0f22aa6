"""Dense bfloat16 tensor-core peaks of GPUs, for estimates of utilisation and of fleet sizes.

The figures are from NVIDIA's datasheets. If a datasheet prints the peak with sparsity, the figure here is half of it.
Numbers of multiprocessors are given for GPUs that can be divided into MIG slices.
"""

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["GPU_PEAKS", "GpuPeak", "gpu_peak", "peak_flops_per_s"]


class GpuPeak(NamedTuple):
    """A GPU model and its peak speed."""

    key: str
    """Name of the GPU on the command line."""
    name_part: str
    """Part of the name that the driver reports."""
    flops_per_s: float
    """Peak in bfloat16, or in float16 if the GPU has no bfloat16 (T4)."""
    num_multiprocessors: int | None = None
    """Multiprocessors of the whole GPU; null if it has no MIG slices."""


GPU_PEAKS = (  # longer names first, because `gpu_peak` takes the first match
    GpuPeak("b200", "B200", 2.25e15, 148),
    GpuPeak("h200", "H200", 989e12, 132),
    GpuPeak("h100-pcie", "H100 PCIe", 756e12, 114),
    GpuPeak("h100-nvl", "H100 NVL", 835e12, 132),
    GpuPeak("h100", "H100", 989e12, 132),
    GpuPeak("a100", "A100", 312e12, 108),
    GpuPeak("a10g", "A10G", 70e12),
    GpuPeak("a10", "A10", 125e12),
    GpuPeak("a30", "A30", 165e12, 56),
    GpuPeak("l40s", "L40S", 362e12),
    GpuPeak("l40", "L40", 181e12),
    GpuPeak("l4", "L4", 121e12),
    GpuPeak("t4", "T4", 65e12),
)


def gpu_peak(driver_name: str) -> GpuPeak | None:
    """The entry for a name reported by the driver, such as `NVIDIA H100 80GB HBM3`; null if the GPU is not listed."""
    return next((gpu for gpu in GPU_PEAKS if gpu.name_part in driver_name), None)


def peak_flops_per_s(driver_name: str, num_multiprocessors: Callable[[], int]) -> float | None:
    """Peak of a GPU, or of a MIG slice by its share of the GPU's multiprocessors; null if the GPU is not listed.

    The driver reports a slice as `NVIDIA H100 80GB HBM3 MIG 1g.10gb`, and
    `num_multiprocessors` returns the slice's own number. It is called for slices only.
    """
    gpu = gpu_peak(driver_name)
    if gpu is None:
        return None
    if " MIG " not in driver_name:
        return gpu.flops_per_s
    return gpu.num_multiprocessors and gpu.flops_per_s * num_multiprocessors() / gpu.num_multiprocessors
