"""Records of measurements: provenance (commit, hardware, versions and command) and the file."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["provenance", "save_record"]

_FLAGS = {
    "AVX2": {"avx2"},
    "AVX-VNNI": {"avx_vnni"},
    "AVX-512": {"avx512f"},
    "AVX512-VNNI": {"avx512_vnni"},
    "AVX512-BF16": {"avx512_bf16"},
    "AMX-INT8": {"amx_int8"},
    "AMX-BF16": {"amx_bf16"},
    "NEON": {"asimd"},
    "dot product": {"asimddp"},
    "i8mm": {"i8mm"},
    "bf16": {"bf16"},
    "SVE": {"sve"},
}
"""Instruction sets that matrix products use, and their flags in `/proc/cpuinfo`."""
_MASKS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def provenance(packages: Sequence[str]) -> dict[str, Any]:
    """First fields of every file in `results/`. The versions of `packages` are recorded."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "has_uncommitted_changes": bool(_git("status", "--porcelain")),
        "command": _command(),
        "hardware": {
            "cpu": _cpu_name(),
            "instruction_sets": _instruction_sets(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
    }


def save_record(path: Path, record: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes a record, creating its folder; a file that exists is replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _command() -> str:
    """The command without absolute paths; `sys.argv` contains the file's path even for `python -m benchmarks.x`."""
    program, root = Path(sys.argv[0]), Path(__file__).parents[1]
    if not program.is_absolute() or not program.is_relative_to(root):
        return " ".join(["python", *sys.argv])
    module = ".".join(program.relative_to(root).with_suffix("").parts).removesuffix(".__main__")
    return " ".join(["python", "-m", module, *sys.argv[1:]])


def _version(package: str) -> str | None:
    """Version of a package; null if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of a git command; null if git, the repository or a commit is missing."""
    if shutil.which("git") is None:
        return None
    result = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() if result.returncode == 0 else None


def _cpu_name() -> str:
    """Name and generation: a virtual machine may report only `AMD EPYC` for every generation."""
    name, family, model = (_cpuinfo(key) for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model})" if name and family and model else name or platform.machine()


def _instruction_sets() -> dict[str, Any]:
    """What the processor offers, and what torch's own kernels use, which `ATEN_CPU_CAPABILITY` can lower.

    `masks` has the variables that hide instructions from a library.
    """
    flags = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())  # `Features` on ARM
    return {
        "processor": [name for name, names in _FLAGS.items() if flags & names],
        "torch": torch.backends.cpu.get_cpu_capability(),
        "masks": {name: os.environ[name] for name in _MASKS if name in os.environ},
    }


def _cpuinfo(key: str) -> str | None:
    """The first value of a key in `/proc/cpuinfo`; null if there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    values = (value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key)
    return next(values, None)
