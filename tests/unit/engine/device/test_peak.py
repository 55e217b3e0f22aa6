"""GPUs are recognised by the name that the driver reports."""

import pytest

from rerank_service.engine.device.peak import GPU_PEAKS, gpu_peak, peak_flops_per_s


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
    ],
)
def test_a_gpu_is_recognised_by_the_drivers_name(name: str, key: str) -> None:
    gpu = gpu_peak(name)
    assert gpu is not None
    assert gpu.key == key


def test_an_unknown_gpu_has_no_peak() -> None:
    assert gpu_peak("NVIDIA GeForce RTX 4090") is None


def test_every_entry_is_found_by_its_own_name() -> None:
    assert [gpu_peak(f"NVIDIA {gpu.name_part}") for gpu in GPU_PEAKS] == list(GPU_PEAKS)


@pytest.mark.parametrize(
    ("name", "num_multiprocessors", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 132, 989e12),
        ("NVIDIA H100 80GB HBM3 MIG 7g.80gb", 132, 989e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 16, 989e12 * 16 / 132),
        ("NVIDIA H100 PCIe MIG 3g.40gb", 46, 756e12 * 46 / 114),
        ("NVIDIA A100-SXM4-40GB MIG 2g.10gb", 28, 312e12 * 28 / 108),
        ("NVIDIA A30 MIG 1g.6gb", 14, 165e12 / 4),
        ("NVIDIA GeForce RTX 4090", 128, None),
    ],
)
def test_a_slice_has_the_peak_of_its_multiprocessors(name: str, num_multiprocessors: int, expected: float) -> None:
    assert peak_flops_per_s(name, lambda: num_multiprocessors) == expected
