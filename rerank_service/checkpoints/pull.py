"""From a source's name to its files on this machine. It must not know configurations, replicas or terminals."""

import re
from pathlib import Path

from rerank_service.checkpoints.cache import destination
from rerank_service.checkpoints.digests import Progress, silent
from rerank_service.checkpoints.origin import Origin
from rerank_service.checkpoints.snapshot import Destination, Fetched, fetch, find_whole
from rerank_service.errors import CheckpointError

__all__ = ["pull"]

_PINNED = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def pull(
    source: str,
    revision: str | None = None,
    *,
    to: Path | None = None,
    progress: Progress = silent,
    thorough: bool = True,
) -> Fetched:
    """The checkpoint of a hub id or an object store's path, in `to` or in this machine's cache.

    `revision` is a commit, branch or tag of the hub, or what `manifest.content_revision` makes of an object store's
    files; null is what the source has now. A commit or such a digest that is here as a whole asks nobody. `thorough` as
    in `snapshot.fetch`. Raises `CheckpointError`.
    """
    source = source.rstrip("/")
    if revision is not None and _PINNED.fullmatch(revision):
        whole = find_whole(_place(source, revision, to), source, revision, progress)
        if whole is not None:
            return whole
    origin = _origin(source, revision)
    if origin.revision is not None:
        _refuse_another(source, revision, origin.revision)
    fetched = fetch(origin, _place(source, origin.revision, to), progress, thorough=thorough)
    _refuse_another(source, revision, fetched.manifest.revision)
    return fetched


def _place(source: str, revision: str | None, to: Path | None) -> Destination:
    if to is None:
        return destination(source, revision)
    folder = to.expanduser().absolute()
    return Destination(folder.parent, folder.name, is_cache=False)


def _origin(source: str, revision: str | None) -> Origin:
    if "://" in source:
        from rerank_service.checkpoints.object_store import ObjectStoreCheckpoint

        return ObjectStoreCheckpoint(source)
    if not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"{source!r} is no hub id ORGANISATION/NAME, and no path like s3://bucket/folder")
    from rerank_service.checkpoints.hub import HubCheckpoint, resolve_revision  # half a second that only hub ids pay

    return HubCheckpoint(source, resolve_revision(source, revision))


def _refuse_another(source: str, wanted: str | None, found: str) -> None:
    """Raises `CheckpointError` if a store has other files than are wanted; a hub's commits are what they are."""
    if "://" in source and wanted is not None and found != wanted:
        raise CheckpointError(
            f"{source} is at revision {found} now, and not at {wanted}: put the files back that were there, or give "
            "the new revision"
        )
