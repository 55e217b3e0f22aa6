"""Writes a reranker checkpoint with random weights in the exact published format of its architecture."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import save_torch_state_dict
from rich.console import Console
from rich.progress import track

from rerank_service.tools.random_checkpoints.formats import published_config, tensor_shapes
from rerank_service.tools.random_checkpoints.shapes import Architecture, Shape, shape_of
from rerank_service.tools.random_checkpoints.tokenizer import special_ids, tokenizer_files, tokenizer_vocab_size

__all__ = ["Architecture", "DTypeName", "count_parameters", "make_checkpoint"]

DTypeName = Literal["bfloat16", "float32"]

_READABLE = 0o644
"""Mode of the written files. safetensors writes mode 0600, but the service may run as a different user."""

_FILES = {
    "config.json",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
"""Files of a checkpoint other than its weights."""

_DTYPES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}

_CHUNK = 1 << 20
"""Numbers drawn at a time, in float32. A bfloat16 tensor then needs little additional memory, equals the rounded
float32 tensor of the same seed, and is drawn three times as fast as in bfloat16. Changing this value changes the
weights."""

_NOISE_STD = 0.1
_EMBEDDING_STD = 0.3

_CLASSIFIER_GAIN = 4.0
_SCORE_GAIN = 8.0
"""Gain of a decoder's score. It is larger than a classifier's, because the mean over many tokens is small."""


def make_checkpoint(
    folder: Path,
    architecture: Architecture,
    size: str,
    *,
    seed: int = 0,
    dtype: DTypeName = "bfloat16",
    head_bias: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    device: str = "cpu",
) -> Path:
    """Writes a checkpoint to `folder` and returns the folder. The same arguments produce the same bytes.

    `device` draws the numbers: a GPU is much faster, and draws other numbers than a CPU.

    Weights over 5 GB are sharded. `head_bias` adds score.bias (mistral only). `overwrite` replaces an existing
    checkpoint, but never a folder with other files. The folder is created atomically. Raises `ValueError` for an
    unsupported combination, and `FileExistsError` if the folder cannot be replaced.
    """
    architecture = Architecture(architecture)
    shape = _checked_shape(architecture, size, head_bias)
    if dtype not in _DTYPES:
        raise ValueError(f"no dtype {dtype!r}; supported: {', '.join(_DTYPES)}")
    _check_replaceable(folder, overwrite=overwrite)
    config = _config(architecture, shape, dtype)
    names = tensor_shapes(architecture, config, head_bias=head_bias)
    with _whole_or_nothing(folder) as partial:
        content = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (partial / "config.json").write_text(content, encoding="utf-8")
        for name, text in tokenizer_files(architecture, shape.model_max_length).items():
            (partial / name).write_text(text, encoding="utf-8")
        listed = track(names.items(), "making weights", disable=not progress, console=Console(stderr=True))
        options = {"seed": seed, "has_noise": shape.has_noise, "embedding_scale": config.get("scale_emb", 1)}
        tensors = {
            name: _random_tensor(name, size_of, _DTYPES[dtype], device=device, **options) for name, size_of in listed
        }
        save_torch_state_dict(tensors, partial, max_shard_size="5GB", metadata={"format": "pt"})
    return folder


def count_parameters(architecture: Architecture, size: str, *, head_bias: bool = False) -> int:
    """Number of parameters of a checkpoint, without making it."""
    shape = _checked_shape(architecture, size, head_bias)
    names = tensor_shapes(architecture, _config(architecture, shape, "bfloat16"), head_bias=head_bias)
    return sum(torch.Size(dimensions).numel() for dimensions in names.values())


def _checked_shape(architecture: Architecture, size: str, head_bias: bool) -> Shape:
    if head_bias and architecture is not Architecture.MISTRAL:
        raise ValueError(f"{architecture} has no optional head bias; supported: {Architecture.MISTRAL}")
    return shape_of(architecture, size)


def _config(architecture: Architecture, shape: Shape, dtype: str) -> dict[str, Any]:
    vocab_size = shape.vocab_size or tokenizer_vocab_size(architecture)
    return published_config(architecture, shape, vocab_size, special_ids(architecture), dtype)


def _check_replaceable(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise FileExistsError(f"{folder} is not a folder")
    if Path.cwd().is_relative_to(folder.resolve()):
        # Replacing the current folder would leave the shell in a deleted folder, where programs fail to start.
        raise FileExistsError(f"{folder} is the current folder; run the command from another folder")
    present = sorted(path.name for path in folder.iterdir())
    if present and not overwrite:
        raise FileExistsError(f"{folder} is not empty; overwrite=True (--force) replaces an existing checkpoint")
    for name in present:
        is_weights = name.endswith(".safetensors")
        if not ((is_weights or name in _FILES) and (folder / name).is_file()):
            raise FileExistsError(f"{folder} is not replaced, because it contains more than a checkpoint: {name}")


def _random_tensor(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    seed: int,
    has_noise: bool,
    embedding_scale: float = 1.0,
    device: str = "cpu",
) -> torch.Tensor:
    """A normally distributed tensor with mean one (norm weights) or zero (other weights).

    Matrices keep the scale of their input. Attention is then far from uniform, and a wrong mask or rotation changes the
    logits. The head spreads logits over a few units. Without `has_noise`, norm weights are one and biases are zero.
    `embedding_scale`: the model multiplies its embeddings by this number.
    """
    is_vector = len(shape) == 1
    mean = 1.0 if is_vector and not name.endswith(".bias") else 0.0
    if is_vector and not has_noise:
        return torch.full(shape, mean, dtype=dtype)
    if is_vector:
        std = _NOISE_STD
    elif "embed" in name:
        std = _EMBEDDING_STD / embedding_scale
    else:
        head_gain = _SCORE_GAIN if name == "score.weight" else _CLASSIFIER_GAIN
        std = (1.0 if shape[0] > 1 else head_gain) / math.sqrt(shape[1])
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big"))
    tensor = torch.empty(shape, dtype=dtype, device=device)
    flat = tensor.view(-1)
    drawn = torch.empty(min(_CHUNK, flat.numel()), dtype=torch.float32, device=device)
    for start in range(0, flat.numel(), _CHUNK):
        chunk = flat[start : start + _CHUNK]
        chunk.copy_(drawn[: chunk.numel()].normal_(mean, std, generator=generator))
    return tensor.cpu()


@contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[Path]:
    folder = folder.resolve()  # "a/.." has no name from which to derive a sibling
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        for path in partial.iterdir():
            path.chmod(_READABLE)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
