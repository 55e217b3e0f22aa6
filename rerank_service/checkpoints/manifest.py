"""What was fetched and verified, in a file next to it, so that a load can tell whether it still is what it was.

It must not know where files come from.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from rerank_service.checkpoints.digests import quick_digest
from rerank_service.errors import CheckpointError

__all__ = ["MANIFEST_FILE", "FileRecord", "Manifest", "check_against_manifest", "content_revision", "read_manifest"]

MANIFEST_FILE = "fetched.json"


class FileRecord(BaseModel):
    """A file as it was when all its bytes were verified."""

    model_config = ConfigDict(frozen=True)

    size_bytes: NonNegativeInt
    sha256: str
    quick_digest: str
    """See `digests.quick_digest`."""
    checked_against: str | None
    """Which digest of the source it had. Null: the source stated none, so this one is merely on record."""


class Manifest(BaseModel):
    """A fetched checkpoint."""

    model_config = ConfigDict(frozen=True)

    source: str
    revision: str
    fingerprint: str
    """Of the source's listing when it was fetched."""
    files: Mapping[str, FileRecord]

    def write(self, folder: Path) -> None:
        """Into a folder that nobody reads yet, or over the same manifest."""
        text = json.dumps(self.model_dump(), indent=2, sort_keys=True) + "\n"
        (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


class _Problem(NamedTuple):
    name: str
    what: str


def read_manifest(folder: Path) -> Manifest | None:
    """Null where there is none. Raises `CheckpointError` if it cannot be read."""
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not what `rerank-service pull` writes"
        raise CheckpointError(f"cannot read {path}: {reason}; delete {folder} and pull it again") from None


def check_against_manifest(folder: Path) -> None:
    """Sizes and quick digests of what was fetched; nothing where there is no manifest. Raises `CheckpointError`."""
    manifest = read_manifest(folder)
    if manifest is None:
        return
    problems = [problem for name, record in manifest.files.items() if (problem := _problem(folder, name, record))]
    if problems:
        raise CheckpointError(
            f"{folder} is not what was fetched: {'; '.join(f'{name} {what}' for name, what in problems[:3])}. "
            f"Fetch what is damaged again: rerank-service pull {manifest.source}@{manifest.revision} --to {folder}"
        )


def content_revision(files: Mapping[str, FileRecord]) -> str:
    """One digest of all files, for sources without revisions: `sha256sum FILES | LC_ALL=C sort -k 2 | sha256sum`."""
    lines = "".join(f"{record.sha256}  {name}\n" for name, record in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _problem(folder: Path, name: str, record: FileRecord) -> _Problem | None:
    path = folder / name
    try:
        size_bytes = path.stat().st_size
        if size_bytes != record.size_bytes:
            return _Problem(name, f"has {size_bytes:,} bytes of {record.size_bytes:,}")
        if quick_digest(path) != record.quick_digest:
            return _Problem(name, "has other bytes")
    except OSError as error:
        return _Problem(name, f"cannot be read ({error.strerror})")
    return None
