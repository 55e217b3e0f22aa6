"""What a result says about its origin."""

import platform

import pytest
import torch

from benchmarks.provenance import provenance


def test_the_instruction_sets_and_masks_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)

    recorded = provenance(["torch"])["hardware"]["instruction_sets"]

    assert recorded["torch"] == torch.backends.cpu.get_cpu_capability()
    assert recorded["masks"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    if platform.system() == "Linux" and recorded["torch"] == "AVX512":
        assert {"AVX2", "AVX-512"} <= set(recorded["processor"])
