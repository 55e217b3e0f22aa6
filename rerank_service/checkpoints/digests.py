"""Digests of files, whole and sampled. It must not know which digest is the right one, nor what to do if it is not."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

__all__ = ["SAMPLED_ABOVE_BYTES", "FileDigests", "Progress", "quick_digest", "read_digests", "silent"]

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and of how much."""

SAMPLED_ABOVE_BYTES = 64 * 1024 * 1024
"""Up to here a file's quick digest is that of all its bytes."""

_SAMPLES = 64
_SAMPLE_BYTES = 64 * 1024
_READ_BYTES = 8 * 1024 * 1024


class FileDigests(NamedTuple):
    """Of all bytes of a file."""

    size_bytes: int
    sha256: str
    git_sha1: str


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def read_digests(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> FileDigests:
    """Reads all of a file once; `on_bytes` is told how many more were read."""
    size_bytes = path.stat().st_size
    sha256 = hashlib.sha256()
    git_sha1 = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)  # what git calls a small file
    is_small = size_bytes <= SAMPLED_ABOVE_BYTES  # large files have a sha256 on every hub
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            sha256.update(piece)
            if is_small:
                git_sha1.update(piece)
            on_bytes(len(piece))
    return FileDigests(size_bytes, sha256.hexdigest(), git_sha1.hexdigest() if is_small else "")


def quick_digest(path: Path) -> str:
    """SHA-256 of a file, or of 4 MB spread evenly over a large one: first and last bytes, and 62 places between.

    Finds what is cut, swapped, or has holes of a 64th of its size; not a single flipped bit.
    """
    size_bytes = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size_bytes <= SAMPLED_ABOVE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        for sample in range(_SAMPLES):
            file.seek((size_bytes - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
