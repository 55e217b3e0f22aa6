"""A folder of an object store (`s3://`, `gs://`, or any other store that fsspec supports) as a source of checkpoints.

Credentials come from the environment, as with each store's own tools. This module must not depend on local folders.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rerank_service.checkpoints.origin import CutOff, Digest, RemoteFile, choose_files, is_module_folder
from rerank_service.checkpoints.verification import MANIFEST_FILE, Manifest, content_revision
from rerank_service.errors import CheckpointError

__all__ = ["RANGE_BYTES", "ObjectStoreCheckpoint"]

RANGE_BYTES = 32 * 1024 * 1024
"""Size of one range request."""
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "crc32c", "generation", "content_md5", "LastModified", "updated", "mtime")
_MANIFEST_BYTES = 1_000_000
_INSTALL = "pip install 'rerank-service[objectstore]'"


class ObjectStoreCheckpoint:
    """The files of one folder; implements `Origin`."""

    def __init__(self, url: str) -> None:
        """Lists the files, and reads the manifest if the folder is an uploaded copy of a pulled folder.

        Raises `CheckpointError`.
        """
        self.source = url.rstrip("/")
        with _readable_errors(self.source):
            from fsspec.core import url_to_fs

            self._store, folder = url_to_fs(self.source)
            self._folder = folder.rstrip("/")
            listing = self._listing()
            manifest = self._manifest(listing)
        self.fingerprint = _fingerprint(self.source, listing)
        records = manifest.files if manifest else {}
        entries = []
        for name, entry in listing.items():
            digest = Digest("sha256", records[name].sha256) if name in records else None
            entries.append(RemoteFile(name, int(entry["size"]), digest))
        self.files = choose_files(entries, self.source)
        self.revision: str | None = None
        if all(file.name in records for file in self.files):
            self.revision = content_revision({file.name: records[file.name] for file in self.files})

    def read(self, file: RemoteFile, offset: int) -> Iterator[tuple[int, bytes]]:
        """Yields the pieces of a file, each from a range request, so that a store's time limit applies to one range."""
        path = f"{self._folder}/{file.name}"
        for start in range(offset, file.size_bytes, RANGE_BYTES):
            end = min(start + RANGE_BYTES, file.size_bytes)
            with _readable_errors(self.source, is_retried=True):
                piece = self._store.cat_file(path, start=start, end=end)
            yield start, piece
            if len(piece) < end - start:
                raise CutOff(f"received {len(piece)} of {end - start} bytes")

    def at_hand(self, file: RemoteFile) -> Path | None:
        """Always null, because object stores have no cache on this machine."""
        return None

    def check_unchanged(self) -> None:
        """Lists the folder again. Raises `CheckpointError` if it has changed."""
        with _readable_errors(self.source):
            listing = self._listing()
        if _fingerprint(self.source, listing) != self.fingerprint:
            raise CheckpointError(f"{self.source} changed during the fetch; fetch it again once the upload is complete")

    def _listing(self) -> dict[str, Mapping[str, Any]]:
        self._store.invalidate_cache()  # stores' libraries cache listings
        listing: dict[str, Mapping[str, Any]] = {}
        for entry in self._store.ls(self._folder, detail=True):
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if entry["type"] == "file":
                listing[name] = entry
            elif is_module_folder(name):
                below = self._store.ls(f"{self._folder}/{name}", detail=True)
                listing |= {f"{name}/{one['name'].rpartition('/')[2]}": one for one in below if one["type"] == "file"}
        return listing

    def _manifest(self, listing: Mapping[str, Mapping[str, Any]]) -> Manifest | None:
        entry = listing.get(MANIFEST_FILE)
        if entry is None or entry["size"] > _MANIFEST_BYTES:
            return None
        return Manifest.model_validate_json(self._store.cat_file(f"{self._folder}/{MANIFEST_FILE}"))


def _fingerprint(source: str, listing: Mapping[str, Mapping[str, Any]]) -> str:
    """Digest of the names, sizes and versions that the store reports. Reading a file does not change it."""
    facts = {
        name: [entry["size"], *(str(entry[key]) for key in _VERSION_KEYS if key in entry)]
        for name, entry in listing.items()
    }
    return hashlib.sha256(json.dumps([source, facts], sort_keys=True).encode()).hexdigest()


@contextmanager
def _readable_errors(url: str, *, is_retried: bool = False) -> Iterator[None]:
    """Raises a `CheckpointError` in place of any error. With `is_retried`, an error that may be temporary becomes a
    `CutOff` instead.

    This function catches every exception, because each store's library has its own exceptions.
    """
    try:
        yield
    except ImportError as error:
        raise CheckpointError(f"{url} needs a package that is not installed: {_INSTALL} ({error})") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{url} does not exist, or has no files") from error
    except PermissionError as error:
        raise CheckpointError(f"{url} is not readable with the credentials of this environment: {error}") from error
    except Exception as error:
        reason = re.sub(r"\s+", " ", str(error))[:300] or type(error).__name__
        if is_retried:
            raise CutOff(reason) from error
        raise CheckpointError(f"cannot read {url}: {reason}") from error
