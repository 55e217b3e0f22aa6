"""Whether a file on this machine is the one that was meant. It must not know how it came here."""

from collections.abc import Callable
from pathlib import Path

from rerank_service.checkpoints.digests import SAMPLED_ABOVE_BYTES, FileDigests, Progress, quick_digest, read_digests
from rerank_service.checkpoints.files import RemoteFile
from rerank_service.checkpoints.manifest import FileRecord, Manifest

__all__ = ["MEGABYTE", "is_as_recorded", "verified_record"]

MEGABYTE = 1_000_000
"""What progress is counted in."""


def verified_record(path: Path, file: RemoteFile, before: FileRecord | None, progress: Progress) -> FileRecord | None:
    """Null unless all bytes are there, with the digest that the source states; if none, that on record `before`."""
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return None
    digests = read_digests(path, _counted(file.size_bytes, progress))
    if file.digest is None:
        is_right = before is None or before.sha256 == digests.sha256
    else:
        is_right = _of_algorithm(digests, file.digest.algorithm) == file.digest.hexdigest
    if not is_right:
        return None
    return FileRecord(
        size_bytes=digests.size_bytes,
        sha256=digests.sha256,
        quick_digest=quick_digest(path),
        checked_against=file.digest.algorithm if file.digest else None,
    )


def is_as_recorded(folder: Path, manifest: Manifest, progress: Progress) -> bool:
    """Whether all bytes of all files are what was fetched."""
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != record.size_bytes:
            return False
        if read_digests(path, _counted(record.size_bytes, progress)).sha256 != record.sha256:
            return False
    return True


def _of_algorithm(digests: FileDigests, algorithm: str) -> str:
    return digests.sha256 if algorithm == "sha256" else digests.git_sha1


def _counted(size_bytes: int, progress: Progress) -> Callable[[int], None]:
    """Tells how much of a large file is read; a small one is not worth a word."""
    read_bytes = 0

    def on_bytes(more: int) -> None:
        nonlocal read_bytes
        read_bytes += more
        if size_bytes > SAMPLED_ABOVE_BYTES:
            progress("checking", read_bytes // MEGABYTE, size_bytes // MEGABYTE)

    return on_bytes
