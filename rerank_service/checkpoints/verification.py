"""Verifies a checkpoint's files on this machine by digests, a manifest and safetensors headers.

The manifest is stored with the fetched files. This module must not depend on the sources of files.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open

from rerank_service.checkpoints.origin import SAFETENSORS_INDEX, RemoteFile
from rerank_service.errors import CheckpointError

__all__ = [
    "MANIFEST_FILE",
    "MEGABYTE",
    "SAMPLED_ABOVE_BYTES",
    "FileDigests",
    "FileRecord",
    "Manifest",
    "Progress",
    "check_against_manifest",
    "check_safetensors",
    "content_revision",
    "is_as_recorded",
    "no_progress",
    "quick_digest",
    "read_digests",
    "read_manifest",
    "verified_record",
]

Progress = Callable[[str, int, int], None]
"""A function that takes the current activity, the amount done, and the total; for files, amounts are in megabytes."""

MANIFEST_FILE = "fetched.json"

MEGABYTE = 1_000_000

SAMPLED_ABOVE_BYTES = 64 * 1024 * 1024
"""For files up to this size, the quick digest covers all bytes."""

_SAMPLES = 64
_SAMPLE_BYTES = 64 * 1024
_READ_BYTES = 8 * 1024 * 1024


class FileDigests(NamedTuple):
    """Digests of all bytes of a file."""

    size_bytes: int
    sha256: str
    git_sha1: str
    """Git's digest, which also covers a header. Empty for a large file."""


class FileRecord(BaseModel):
    """Size and digests of a file at the time when all its bytes were verified."""

    model_config = ConfigDict(frozen=True)

    size_bytes: NonNegativeInt
    sha256: str
    quick_digest: str
    checked_against: str | None
    """Algorithm of the digest that the source reports for the file. Null: the source reports no digest."""


class Manifest(BaseModel):
    """A fetched checkpoint: its source, its revision and its files. Stored in the checkpoint's folder."""

    model_config = ConfigDict(frozen=True)

    source: str
    revision: str
    fingerprint: str
    """Fingerprint of the source's listing at the time of the fetch."""
    files: Mapping[str, FileRecord]

    def write(self, folder: Path) -> None:
        """Writes the manifest, but not atomically: call it only while no other process reads the folder."""
        text = json.dumps(self.model_dump(), indent=2, sort_keys=True) + "\n"
        (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def no_progress(stage: str, done: int, total: int) -> None:
    """Ignores progress reports."""


def read_digests(path: Path, progress: Progress = no_progress) -> FileDigests:
    """Computes the digests of a file in one pass. Reports progress for a large file."""
    size_bytes = path.stat().st_size
    is_large = size_bytes > SAMPLED_ABOVE_BYTES
    sha256 = hashlib.sha256()
    git_sha1 = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)  # git's id of a small file
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            sha256.update(piece)
            if is_large:  # no git digest needed: hubs report the sha256 of each large file
                progress("checking", file.tell() // MEGABYTE, size_bytes // MEGABYTE)
            else:
                git_sha1.update(piece)
    return FileDigests(size_bytes, sha256.hexdigest(), "" if is_large else git_sha1.hexdigest())


def quick_digest(path: Path) -> str:
    """SHA-256 of a file or, for a large file, of 4 MB of samples spread evenly from the first to the last byte.

    The digest detects a truncated file, a swapped file and any gap that covers a 64th of the file, but not a single
    flipped bit.
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


def verified_record(path: Path, file: RemoteFile, before: FileRecord | None, progress: Progress) -> FileRecord | None:
    """Returns the record of a complete and correct file; null for any other file.

    A file is correct if it has the digest that the source reports. If the source reports no digest, the file is
    compared with the digest of an earlier fetch, `before`. Without `before`, any content is accepted.
    """
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return None
    digests = read_digests(path, progress)
    if file.digest is not None:
        actual = digests.sha256 if file.digest.algorithm == "sha256" else digests.git_sha1
        is_right = actual == file.digest.hexdigest
    else:
        is_right = before is None or before.sha256 == digests.sha256
    if not is_right:
        return None
    return FileRecord(
        size_bytes=digests.size_bytes,
        sha256=digests.sha256,
        quick_digest=quick_digest(path),
        checked_against=file.digest.algorithm if file.digest else None,
    )


def read_manifest(folder: Path) -> Manifest | None:
    """Reads the manifest of a folder; null if the folder has none. Raises `CheckpointError` if it cannot be read."""
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not written by `rerank-service pull`"
        raise CheckpointError(f"cannot read {path}: {reason}; delete {folder} and pull the checkpoint again") from None


def content_revision(files: Mapping[str, FileRecord]) -> str:
    """One digest of all files, for sources without revisions: `sha256sum FILES | LC_ALL=C sort -k 2 | sha256sum`."""
    lines = "".join(f"{record.sha256}  {name}\n" for name, record in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def is_as_recorded(folder: Path, manifest: Manifest, progress: Progress) -> bool:
    """Whether every file has the size and the full digest that the manifest records. Reads all bytes."""
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != record.size_bytes:
            return False
        if read_digests(path, progress).sha256 != record.sha256:
            return False
    return True


def check_against_manifest(folder: Path) -> None:
    """Compares sizes and quick digests with the manifest, if the folder has one. Raises `CheckpointError`."""
    manifest = read_manifest(folder)
    problems = []
    for name, record in manifest.files.items() if manifest else ():
        path = folder / name
        try:
            size_bytes = path.stat().st_size
            if size_bytes != record.size_bytes:
                problems.append(f"{name} has {size_bytes:,} bytes instead of {record.size_bytes:,}")
            elif quick_digest(path) != record.quick_digest:
                problems.append(f"{name} has different content")
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
    if manifest and problems:
        raise CheckpointError(
            f"{folder} differs from the fetched checkpoint: {'; '.join(problems[:3])}. To fetch the damaged files "
            f"again: rerank-service pull {manifest.source}@{manifest.revision} --to {folder}"
        )


def check_safetensors(folder: Path) -> None:
    """Checks that safetensors files are complete and that an index only names files in the folder.

    Reads headers and sizes, not weights. Raises `CheckpointError`.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np"):  # compares the file's header with its size
                pass
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged ({error}): fetch the file again") from error
    index = folder / SAFETENSORS_INDEX
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not a safetensors index ({type(error).__name__}): fetch the checkpoint again"
        ) from None
    for name in shards:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which is not a file in the same folder")
        if not (folder / name).is_file():
            raise CheckpointError(f"{index} names {name}, which is missing: fetch the checkpoint again")
