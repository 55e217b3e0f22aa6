"""A folder of an object store (`s3://`, `gs://`, whatever fsspec knows) as a place to fetch from.

Credentials are those of the environment, as each store's own tools take them. It must not know local folders.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rerank_service.checkpoints.files import Digest, RemoteFile, choose_files
from rerank_service.checkpoints.manifest import MANIFEST_FILE, Manifest, content_revision
from rerank_service.checkpoints.origin import CutOff
from rerank_service.errors import CheckpointError

__all__ = ["ObjectStoreCheckpoint"]

_RANGE_BYTES = 32 * 1024 * 1024
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "crc32c", "generation", "content_md5", "LastModified", "updated", "mtime")
_MANIFEST_BYTES = 1_000_000
_INSTALL = "pip install 'rerank-service[objectstore]'"


class ObjectStoreCheckpoint:
    """The files of one folder. An `Origin`."""

    def __init__(self, url: str) -> None:
        """Lists them, and reads the manifest that a pulled folder brings along. Raises `CheckpointError`."""
        self.source = url.rstrip("/")
        with _told_readably(self.source):
            self._store, self._folder = _open(self.source)
            listing = self._listing()
        self.fingerprint = _fingerprint(self.source, listing)
        manifest = self._manifest(listing)
        digests = {name: Digest("sha256", record.sha256) for name, record in manifest.files.items()} if manifest else {}
        entries = (RemoteFile(name, int(entry["size"]), digests.get(name)) for name, entry in listing.items())
        self.files = choose_files(entries, self.source)
        self.revision = _revision_by(manifest, self.files)

    def read(self, file: RemoteFile, offset: int) -> Iterator[tuple[int, bytes]]:
        """In ranges, so that a store's own time limits are for one of them."""
        path = f"{self._folder}/{file.name}"
        for start in range(offset, file.size_bytes, _RANGE_BYTES):
            end = min(start + _RANGE_BYTES, file.size_bytes)
            with _told_readably(self.source, is_mended=True):
                piece = self._store.cat_file(path, start=start, end=end)
            yield start, piece
            if len(piece) < end - start:
                raise CutOff(f"{len(piece)} of {end - start} bytes came")

    def at_hand(self, file: RemoteFile) -> Path | None:
        """Never: an object store has no cache of its own."""
        return None

    def check_unchanged(self) -> None:
        """Lists the folder again."""
        with _told_readably(self.source):
            listing = self._listing()
        if _fingerprint(self.source, listing) != self.fingerprint:
            raise CheckpointError(f"{self.source} was changed while it was fetched; fetch it again once it is complete")

    def _listing(self) -> dict[str, Mapping[str, Any]]:
        self._store.invalidate_cache()  # libraries keep listings
        entries = self._store.ls(self._folder, detail=True)
        return {entry["name"].rpartition("/")[2]: entry for entry in entries if entry["type"] == "file"}

    def _manifest(self, listing: Mapping[str, Mapping[str, Any]]) -> Manifest | None:
        entry = listing.get(MANIFEST_FILE)
        if entry is None or entry["size"] > _MANIFEST_BYTES:
            return None
        with _told_readably(self.source):
            return Manifest.model_validate_json(self._store.cat_file(f"{self._folder}/{MANIFEST_FILE}"))


def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    store, folder = url_to_fs(url)
    return store, folder.rstrip("/")


def _fingerprint(source: str, listing: Mapping[str, Mapping[str, Any]]) -> str:
    """Of names, sizes and what the store says of versions; reading a file changes none of them."""
    facts = {
        name: [entry["size"], *(str(entry[key]) for key in _VERSION_KEYS if key in entry)]
        for name, entry in listing.items()
    }
    return hashlib.sha256(json.dumps([source, facts], sort_keys=True).encode()).hexdigest()


def _revision_by(manifest: Manifest | None, files: tuple[RemoteFile, ...]) -> str | None:
    """Known beforehand where the manifest names every file."""
    if manifest is None or any(file.name not in manifest.files for file in files):
        return None
    return content_revision({file.name: manifest.files[file.name] for file in files})


@contextmanager
def _told_readably(url: str, *, is_mended: bool = False) -> Iterator[None]:
    """Every store's library has errors of its own. `is_mended`: what may pass by itself is a `CutOff`."""
    try:
        yield
    except ImportError as error:
        raise CheckpointError(f"{url} needs a package that is not installed: {_INSTALL} ({error})") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{url} does not exist, or holds no files") from error
    except PermissionError as error:
        raise CheckpointError(f"{url} may not be read with the credentials of this environment: {error}") from error
    except Exception as error:
        reason = re.sub(r"\s+", " ", str(error))[:300] or type(error).__name__
        if is_mended:
            raise CutOff(reason) from error
        raise CheckpointError(f"cannot read {url}: {reason}") from error
