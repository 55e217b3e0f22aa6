"""Whether a folder's safetensors are whole: header, data to the last byte, and an index that names files of the folder.

It must not know which tensors a model needs; nothing of the weights is read.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rerank_service.errors import CheckpointError

__all__ = ["check_safetensors"]

_INDEX = "model.safetensors.index.json"


def check_safetensors(folder: Path) -> None:
    """Raises `CheckpointError` for what a cut transfer or a wrong file leaves behind."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np"):  # maps the file and checks its header against its size
                pass
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged ({error}): fetch the file again") from error
    if (folder / _INDEX).is_file():
        _check_index(folder)


def _check_index(folder: Path) -> None:
    path = folder / _INDEX
    try:
        shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no index of safetensors: {type(error).__name__}") from None
    for name in shards:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{path} names {name!r}, which is no file of its own folder")
        if not (folder / name).is_file():
            raise CheckpointError(f"{path} names {name}, which is missing: fetch the checkpoint again")
