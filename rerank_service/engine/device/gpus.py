"""Dense bfloat16 tensor-core peaks of GPUs, from NVIDIA's datasheets, which print twice this, with sparsity, for some.

For estimates of utilisation and of fleets. Knows no model and no library.
"""

from typing import NamedTuple

__all__ = ["GPUS", "Gpu", "gpu_called"]


class Gpu(NamedTuple):
    """One kind of chip."""

    key: str
    """What our command line calls it."""
    name_part: str
    """What its driver's name contains."""
    peak_flops: float
    """A second; of float16 where there is no bfloat16 (T4)."""


GPUS = (  # longer names before those they contain
    Gpu("b200", "B200", 2.25e15),
    Gpu("h200", "H200", 989e12),
    Gpu("h100-pcie", "H100 PCIe", 756e12),
    Gpu("h100-nvl", "H100 NVL", 835e12),
    Gpu("h100", "H100", 989e12),
    Gpu("a100", "A100", 312e12),
    Gpu("a10g", "A10G", 70e12),
    Gpu("a10", "A10", 125e12),
    Gpu("a30", "A30", 165e12),
    Gpu("l40s", "L40S", 362e12),
    Gpu("l40", "L40", 181e12),
    Gpu("l4", "L4", 121e12),
    Gpu("t4", "T4", 65e12),
)


def gpu_called(driver_name: str) -> Gpu | None:
    """By the name that the driver gives, for instance `NVIDIA H100 80GB HBM3`; null if it is not in the list."""
    return next((gpu for gpu in GPUS if gpu.name_part in driver_name), None)
