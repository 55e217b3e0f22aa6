"""What a result says about its origin."""

import json
import platform
from pathlib import Path

import pytest
import torch

from benchmarks.provenance import provenance, save_record


def test_the_instruction_sets_and_masks_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)

    recorded = provenance(["torch"])["hardware"]["instruction_sets"]

    assert recorded["torch"] == torch.backends.cpu.get_cpu_capability()
    assert recorded["masks"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    if platform.system() == "Linux" and recorded["torch"] == "AVX512":
        assert {"AVX2", "AVX-512"} <= set(recorded["processor"])


def test_a_record_is_saved_in_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results" / "record.json"

    for rows in (["first", "run"], ["second"]):
        save_record(file, {"rows": rows})

    assert json.loads(file.read_text(encoding="utf-8")) == {"rows": ["second"]}
    assert list(file.parent.iterdir()) == [file]
