"""What a GPU multiplies a second at most, from its makers' data sheets: dense bfloat16 with tensor cores.

For an estimate of utilisation only. Knows nothing of any model.
"""

from functools import cache

import torch

__all__ = ["PEAK_FLOPS", "peak_flops"]

PEAK_FLOPS = {
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A30": 165e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "T4": 65e12,  # float16
}
"""By what a GPU's name contains; the longer names come before those they contain."""


@cache
def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 peak of a GPU, in FLOP/s; null if it is not in the list, and on a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
