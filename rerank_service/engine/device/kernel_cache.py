"""The private folder in which torch.compile and Triton store compiled kernels.

Both programs load pickles and native code from this folder, so a user who can write to it can run code in a replica.
The folder therefore belongs to the user of the process, no other user can write to it, and it is never part of a
checkpoint.
"""

import atexit
import hashlib
import logging
import os
import platform
import re
import shutil
import stat
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["kernel_cache_key", "kernel_cache_root", "private_folder", "use_kernel_cache"]

logger = logging.getLogger(__name__)

_INDUCTOR, _TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_CODE = Path(__file__).parents[1]


def use_kernel_cache(gpu: str) -> Path:
    """Makes torch.compile and Triton store their files in a private folder. Returns the folder.

    Call this before the first compilation. The folder depends on the versions in `kernel_cache_key`. If an operator has
    set `TORCHINDUCTOR_CACHE_DIR` or `TRITON_CACHE_DIR`, that folder is used. A folder that is not private is replaced
    by a temporary folder, and a warning tells why.
    """
    folder = _private_or_temporary(kernel_cache_root(), kernel_cache_key(gpu))
    for name, default in ((_INDUCTOR, folder / "inductor"), (_TRITON, folder / "triton")):
        configured = os.environ.get(name)
        chosen = default if configured is None else _private_or_temporary(Path(configured))
        chosen.mkdir(mode=0o700, exist_ok=True)
        os.environ[name] = str(chosen)
    return folder


def kernel_cache_root() -> Path:
    """`RERANK_SERVICE_KERNELS`, or else `rerank-service-kernels` in `XDG_CACHE_HOME` or in `~/.cache`; followed by the
    user's number, because users cannot share the folder."""
    own = os.environ.get("RERANK_SERVICE_KERNELS")
    base = own or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "rerank-service-kernels")
    return Path(f"{base}-{os.geteuid()}").expanduser()


def kernel_cache_key(gpu: str) -> str:
    """Name of the folder for kernels of one GPU, driver, torch, Triton, transformers and version of the engine."""
    parts = (
        *(gpu, platform.machine(), _driver(), torch.__version__, str(torch.version.cuda)),
        *(_version("triton"), _version("transformers"), _code_digest()),
    )
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return re.sub(r"[^\w.+-]+", "-", f"{gpu}-torch-{torch.__version__}-{digest}")


def private_folder(path: Path) -> Path:
    """Creates the folder if it is absent, and returns it. Raises `PermissionError` if another user owns the folder or
    may write to it, and other `OSError` if it cannot be created."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()  # a link could later point to another folder
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{path} is a link or a file, not a folder")
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to user {found.st_uid}, not to {os.geteuid()}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"other users may write to {path} (mode {stat.S_IMODE(found.st_mode):o})")
    path.chmod(0o700)
    return path


def _private_or_temporary(*parts: Path | str) -> Path:
    """The folder made of all `parts`; each of its prefixes that starts with the first part must be private."""
    try:
        folder = private_folder(Path(parts[0]))
        for part in parts[1:]:
            folder = private_folder(folder / part)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"cannot write to {folder}")
    except OSError as error:
        logger.warning(
            "compiled kernels are not kept for the next start: %s; set RERANK_SERVICE_KERNELS to a folder that only "
            "this user can write to",
            error,
        )
        return _temporary_folder()
    return folder


@cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="rerank-kernels-"))  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _driver() -> str:
    """Version of NVIDIA's driver; empty if the system does not tell it."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", _DRIVER_FILE.read_text())
    except OSError:
        return ""
    return found.group() if found else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def _code_digest() -> str:
    """Digest of the engine's own source, whose layers are compiled."""
    digest = hashlib.sha256()
    for path in sorted(_CODE.rglob("*.py")):
        digest.update(path.relative_to(_CODE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
