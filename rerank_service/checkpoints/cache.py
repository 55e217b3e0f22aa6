"""Which folder of this machine a source and its revision are kept in, shared by all processes of a node.

It must not know how they come there.
"""

import hashlib
import os
import re
from pathlib import Path

from rerank_service.checkpoints.manifest import MANIFEST_FILE
from rerank_service.checkpoints.snapshot import Destination

__all__ = ["cache_root", "cached_folder", "destination"]


def cache_root() -> Path:
    """`RERANK_SERVICE_CACHE`; else below `HF_HOME`, where that is set; else below `~/.cache`."""
    if own := os.environ.get("RERANK_SERVICE_CACHE"):
        return Path(own).expanduser()
    of_hub = os.environ.get("HF_HOME")
    return (Path(of_hub) if of_hub else Path("~/.cache")).expanduser() / "rerank-service"


def destination(source: str, revision: str | None) -> Destination:
    """Where a checkpoint of a hub or an object store goes; null names the folder when its revision is known."""
    if "://" not in source:
        return Destination(cache_root() / "hub" / source.replace("/", "--"), revision)
    slug = re.sub(r"[^\w.-]+", "-", source.partition("://")[2]).strip("-.")[-60:]
    key = hashlib.sha256(source.rstrip("/").encode()).hexdigest()[:12]
    return Destination(cache_root() / "objects" / f"{slug}-{key}", revision)


def cached_folder(source: str, revision: str) -> Path | None:
    """The folder of what was fetched as a whole; null where it was not."""
    folder = destination(source, revision).parent / revision
    return folder if (folder / MANIFEST_FILE).is_file() else None
