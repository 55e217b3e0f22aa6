"""From a source's name to its files on this machine. It must not know configurations, replicas or terminals."""

import re
from pathlib import Path

from rerank_service.errors import CheckpointError
from rerank_service.fetching.cache import destination
from rerank_service.fetching.digests import Progress, silent
from rerank_service.fetching.origin import Origin
from rerank_service.fetching.snapshot import Destination, Fetched, fetch

__all__ = ["pull"]

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
    files; null is what the source has now. `thorough` as in `snapshot.fetch`. Raises `CheckpointError`.
    """
    origin = _origin(source, revision)
    is_pinned = "://" in source and revision is not None
    if is_pinned and origin.revision is not None:
        _refuse_another(source, revision, origin.revision)
    where = destination(source, origin.revision)
    if to is not None:
        to = Path(to).expanduser().absolute()
        where = Destination(to.parent, to.name, is_cache=False)
    fetched = fetch(origin, where, progress, thorough=thorough)
    if is_pinned:
        _refuse_another(source, revision, fetched.manifest.revision)
    return fetched


def _origin(source: str, revision: str | None) -> Origin:
    if "://" in source:
        from rerank_service.fetching.object_store import ObjectStoreCheckpoint

        return ObjectStoreCheckpoint(source)
    if not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"{source!r} is no hub id ORGANISATION/NAME, and no path like s3://bucket/folder")
    from rerank_service.fetching.hub import HubCheckpoint, resolve_revision  # half a second that only hub ids pay

    return HubCheckpoint(source, resolve_revision(source, revision))


def _refuse_another(source: str, wanted: str | None, found: str) -> None:
    if found != wanted:
        raise CheckpointError(
            f"{source} is at revision {found} now, and not at {wanted}: put the files back that were there, or give "
            "the new revision"
        )
