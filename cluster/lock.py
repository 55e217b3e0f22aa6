"""Writes the locks of the image: every package with its version and the hashes of its wheels, per platform.

    python -m cluster.lock                          asks the package index and PyTorch's index; needs uv
    python -m cluster.lock --torch-cpu FOLDER       takes torch's CPU build from a folder or another index's page

The versions are those of constraints.txt, which was frozen on a CPU; the locks add CUDA's packages.
`cluster/install.sh --locked` installs a lock. Run this after a change of constraints.txt or of the dependencies.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["EXTRAS", "LOCKS", "PLATFORMS", "lock_text"]

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "cluster" / "locks"
EXTRAS = ("redis", "objectstore", "tracing")
"""Extras of the package that the image contains."""
PLATFORMS = {"linux-x86_64-cuda": "x86_64", "linux-aarch64-cuda": "aarch64", "linux-x86_64-cpu": "x86_64"}
"""Name of each lock and its processor; PyTorch's index has no CPU build that we could hash for aarch64."""
_PYTHON = "3.11"  # the image's
_GLIBC = "manylinux_2_36"  # Debian 12's; wheels for older versions are compatible, so their hashes are listed too
_BUILD_REQUIREMENTS = "setuptools>=77\n"  # pyproject.toml: the package itself is built without an isolated environment
_TORCH_CPU = "https://download.pytorch.org/whl/cpu/torch/"


def lock_text(name: str, packages: list[dict[str, Any]]) -> str:
    """The lock as a requirements file, from the packages of a pylock.toml."""
    head = [
        f"# Python {_PYTHON}, {name}: every package of the image with the hashes of its wheels.",
        "# Written by: python -m cluster.lock",
    ]
    lines = [line for package in packages for line in _entry(package)]
    return "\n".join([*head, *lines]) + "\n"


def _entry(package: dict[str, Any]) -> Iterator[str]:
    hashes = sorted({wheel["hashes"]["sha256"] for wheel in package["wheels"]})
    yield f"{package['name']}=={package['version']} \\"
    yield from (f"    --hash=sha256:{digest} \\" for digest in hashes[:-1])
    yield f"    --hash=sha256:{hashes[-1]}"


def _resolved(uv: str, name: str, torch_cpu: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        constraints, output = Path(folder, "constraints.txt"), Path(folder, "pylock.toml")
        text = _constraints()
        if name.endswith("-cpu"):
            text = re.sub(r"(?m)^(torch==\S+)$", r"\1+cpu", text)
        constraints.write_text(text, encoding="utf-8")
        command = [uv, "pip", "compile", "pyproject.toml", "-", "--quiet", "--format", "pylock.toml"]
        command += ["--output-file", str(output), "--constraint", str(constraints), "--only-binary", ":all:"]
        command += ["--python-version", _PYTHON, "--python-platform", f"{PLATFORMS[name]}-{_GLIBC}"]
        command += [word for extra in EXTRAS for word in ("--extra", extra)]
        command += ["--find-links", torch_cpu] if name.endswith("-cpu") else []
        subprocess.run(command, cwd=ROOT, input=_BUILD_REQUIREMENTS, text=True, check=True)
        return list(tomllib.loads(output.read_text(encoding="utf-8"))["packages"])


def _constraints() -> str:
    return (ROOT / "constraints.txt").read_text(encoding="utf-8")


def main() -> None:
    """Writes all locks."""
    parser = argparse.ArgumentParser(description="Writes the locks of the image.")
    parser.add_argument("--torch-cpu", default=_TORCH_CPU, help="page or folder with torch's CPU builds")
    arguments = parser.parse_args()
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("uv is missing: pip install --constraint constraints.txt uv")
    pin = next(line for line in _constraints().splitlines() if line.startswith("uv=="))
    command = [uv, "pip", "compile", "-", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"]
    written = subprocess.run(command, input=pin, cwd=ROOT, text=True, check=True, capture_output=True).stdout
    (LOCKS / "uv.txt").write_text(f"# Written by: python -m cluster.lock\n{written}", encoding="utf-8")
    for name in PLATFORMS:
        path = LOCKS / f"{name}.txt"
        path.write_text(lock_text(name, _resolved(uv, name, arguments.torch_cpu)), encoding="utf-8")
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
