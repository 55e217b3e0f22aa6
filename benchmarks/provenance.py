"""Provenance of a measurement: commit, hardware, versions and command."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["provenance"]


def provenance(packages: Sequence[str]) -> dict[str, Any]:
    """First fields of every file in `results/`. The versions of `packages` are recorded."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "has_uncommitted_changes": bool(_git("status", "--porcelain")),
        "command": _command(),
        "hardware": {
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
    }


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
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
