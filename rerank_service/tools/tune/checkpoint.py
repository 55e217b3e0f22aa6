"""Writes a tuned model as an ordinary checkpoint: the files of the original, with changed tensors."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rerank_service.engine.loading import quantised_tensors, tensor_files
from rerank_service.errors import CheckpointError

__all__ = ["changed_tensors", "write_checkpoint"]

_NOT_COPIED = {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".py"}
"""Endings of weights in other formats, which would be those of the original, and of code, which is never run."""
_READABLE = 0o644
"""Mode of the weights. safetensors writes mode 0600, but the service may run as a different user."""


def write_checkpoint(original: Path, changes: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Writes the checkpoint to an existing folder. `changes` are added in float32 and stored in the tensors' own type;
    a key is the name of a tensor, or its end.

    Raises `CheckpointError` if a change does not fit exactly one tensor.
    """
    files, named = tensor_files(original), changed_tensors(original, changes)
    for path in sorted(set(files.values())):
        tensors = load_file(path)
        for name in named.keys() & tensors.keys():
            changed = tensors[name].float() + named[name].cpu()
            tensors[name] = changed.to(tensors[name].dtype).contiguous()
        partial = folder / f"{path.name}.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.chmod(_READABLE)
        partial.replace(folder / path.name)
    for path in sorted(original.rglob("*")):
        is_written = path.parent == original and path.suffix == ".safetensors"
        is_kept = path.suffix not in _NOT_COPIED and path.parts[len(original.parts)][0] != "."
        if path.is_file() and is_kept and not is_written:  # a ColBERT model's projections are in folders of their own
            target = folder / path.relative_to(original)
            target.parent.mkdir(exist_ok=True, parents=True)
            shutil.copyfile(path, target)


def changed_tensors(original: Path, changes: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The changes by the whole names of their tensors; reads no values, so changes without values (`meta`) do.

    Raises `CheckpointError` if a change does not fit exactly one tensor, or if the checkpoint is quantised.
    """
    if (quantised := quantised_tensors(original)) is not None:
        raise CheckpointError(
            f"{original} is quantised ({quantised.scheme.name}), and tuning changes float weights only: tune the "
            "original weights"
        )
    files = tensor_files(original)
    return {_tensor_name(end, change, files): change for end, change in changes.items()}


def _tensor_name(end: str, change: torch.Tensor, files: Mapping[str, Path]) -> str:
    found = [name for name in files if name == end or name.endswith(f".{end}")]
    if len(found) != 1:
        raise CheckpointError(f"the checkpoint has {len(found)} tensors named {end}; tuning needs exactly one")
    with safe_open(files[found[0]], framework="pt") as tensors:
        shape = tensors.get_slice(found[0]).get_shape()
    if list(change.shape) != list(shape):
        raise CheckpointError(f"the tensor {found[0]} has the shape {shape}, but its change {list(change.shape)}")
    return found[0]
