"""Turns a source's name and revision into verified files on this machine.

It selects the kind of source and the folder in the cache. This module must not depend on configurations, replicas or
terminals.
"""

import hashlib
import os
import re
from pathlib import Path

from rerank_service.checkpoints.fetch import Destination, Fetched, fetch, find_whole
from rerank_service.checkpoints.origin import Origin
from rerank_service.checkpoints.verification import MANIFEST_FILE, Progress, no_progress
from rerank_service.errors import CheckpointError

__all__ = ["Fetched", "cache_root", "cached_folder", "pull"]

_PINNED = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def pull(
    source: str,
    revision: str | None = None,
    *,
    to: Path | None = None,
    progress: Progress = no_progress,
    thorough: bool = True,
) -> Fetched:
    """Fetches a checkpoint into `to`, or into this machine's cache. `source` is a hub id or a path in an object store.

    `revision` is a commit, branch or tag of the hub, or the `verification.content_revision` of an object store's files;
    null means the current state of the source. A commit or content revision that is complete on this machine needs no
    network. `thorough` has the same meaning as in `fetch`. Raises `CheckpointError`.
    """
    source = source.rstrip("/")
    if revision is not None and _PINNED.fullmatch(revision):
        whole = find_whole(_destination(source, revision, to), source, revision, progress)
        if whole is not None:
            return whole
    origin = _origin(source, revision)
    if origin.revision is not None:
        _check_revision(source, revision, origin.revision)
    fetched = fetch(origin, _destination(source, origin.revision, to), progress, thorough=thorough)
    _check_revision(source, revision, fetched.manifest.revision)
    return fetched


def cached_folder(source: str, revision: str) -> Path | None:
    """The folder of a completely fetched checkpoint in this machine's cache, or null."""
    folder = _destination(source, revision).parent / revision
    return folder if (folder / MANIFEST_FILE).is_file() else None


def cache_root() -> Path:
    """The cache's folder: `RERANK_SERVICE_CACHE`, or else `rerank-service` in `HF_HOME` or in `~/.cache`.

    All processes of a node share this folder.
    """
    if own := os.environ.get("RERANK_SERVICE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("HF_HOME") or "~/.cache").expanduser() / "rerank-service"


def _destination(source: str, revision: str | None, to: Path | None = None) -> Destination:
    """`to`, or the source's folder in the cache, with one folder for each revision."""
    if to is not None:
        folder = to.expanduser().absolute()
        return Destination(folder.parent, folder.name, is_cache=False)
    if "://" not in source:
        return Destination(cache_root() / "hub" / source.replace("/", "--"), revision)
    slug = re.sub(r"[^\w.-]+", "-", source.partition("://")[2]).strip("-.")[-60:]
    key = hashlib.sha256(source.rstrip("/").encode()).hexdigest()[:12]
    return Destination(cache_root() / "objects" / f"{slug}-{key}", revision)


def _origin(source: str, revision: str | None) -> Origin:
    if "://" in source:
        from rerank_service.checkpoints.object_store import ObjectStoreCheckpoint

        return ObjectStoreCheckpoint(source)
    if not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"{source!r} is neither a hub id ORGANISATION/NAME nor a path like s3://bucket/folder")
    # This import takes half a second, and only hub ids need it.
    from rerank_service.checkpoints.hub import HubCheckpoint, resolve_revision

    return HubCheckpoint(source, resolve_revision(source, revision))


def _check_revision(source: str, wanted: str | None, found: str) -> None:
    """Raises `CheckpointError` if an object store's files do not have the wanted revision. Hubs need no check,
    because a commit never changes."""
    if "://" in source and wanted is not None and found != wanted:
        raise CheckpointError(
            f"{source} is now at revision {found}, not at {wanted}: restore the earlier files, or configure the new "
            "revision"
        )
