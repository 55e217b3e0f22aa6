"""GPUs are recognised by the name that the driver reports."""

import pytest

from rerank_service.engine.device.peak import GPU_PEAKS, gpu_peak


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
