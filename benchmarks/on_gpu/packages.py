"""Brings the packages that a bare GPU machine lacks: `python -m benchmarks.gpu --prepare` on a machine with a network.

The packages lie in an ignored folder of the checkout, which travels with the working tree. Imports only the standard
library.
"""

import subprocess
import sys
from pathlib import Path

__all__ = ["FOLDER", "PACKAGES", "PRESENT", "prepare", "use_packages"]

_ROOT = Path(__file__).parents[2]
FOLDER = ".bench/packages"
"""Folder of the checkout for the packages; each version of Python has a folder of its own in it."""

PACKAGES = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions")
"""Packages to bring: about 8 MB. `rerank_service.config` imports pydantic, and pydantic the others."""
PRESENT = (
    *("torch", "transformers", "numpy", "safetensors", "tokenizers", "huggingface-hub"),
    *("filelock", "fsspec", "jinja2", "packaging", "psutil", "pyyaml", "regex", "rich", "sympy", "tqdm", "triton"),
)
"""Packages that the GPU machine must have: torch, transformers, and packages that these two or the package `rich`
need."""

_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")


def prepare(python_version: str = "3.12", root: Path = _ROOT) -> Path:
    """Downloads `PACKAGES` for Linux on x86-64, in the versions of constraints.txt; returns their folder."""
    folder = root / FOLDER / f"cp{python_version.replace('.', '')}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--target", str(folder), "--upgrade", "--no-deps", "--only-binary", ":all:"]
    command += ["--implementation", "cp", "--python-version", python_version]
    command += [word for platform in _PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*command, *pinned((_ROOT / "constraints.txt").read_text(encoding="utf-8"))], check=True)
    return folder


def pinned(constraints: str) -> list[str]:
    """Requirements such as `pydantic==2.14.3` for `PACKAGES`, from the text of constraints.txt."""
    lines = [line.strip() for line in constraints.splitlines() if "==" in line]
    versions = {line.split("==")[0].replace("_", "-").lower(): line for line in lines}
    return [versions[name] for name in PACKAGES]


def use_packages(root: Path = _ROOT) -> None:
    """Makes the brought packages importable. Packages of the machine have precedence."""
    folder = root / FOLDER / f"cp{sys.version_info.major}{sys.version_info.minor}"
    if folder.is_dir():
        sys.path.append(str(folder))
