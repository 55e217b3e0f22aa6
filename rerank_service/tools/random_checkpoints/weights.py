"""Random tensors. Each tensor depends only on the seed, its name and its shape."""

from __future__ import annotations

import hashlib
import math

import torch

__all__ = ["random_tensor"]

_CHUNK = 1 << 20
"""Numbers drawn at a time, in float32. A bfloat16 tensor then needs little additional memory, equals the rounded
float32 tensor of the same seed, and is drawn three times as fast as in bfloat16. Changing this value changes the
weights."""

_NOISE_STD = 0.1
_EMBEDDING_STD = 0.3

_CLASSIFIER_GAIN = 4.0
_SCORE_GAIN = 8.0
"""Gain of a decoder's score. It is larger than a classifier's, because the mean over many tokens is small."""


def random_tensor(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    seed: int,
    has_noise: bool,
) -> torch.Tensor:
    """A normally distributed tensor with mean one (norm weights) or zero (other weights).

    Matrices keep the scale of their input. Attention is then far from uniform, and a wrong mask or rotation changes the
    logits. The head spreads logits over a few units. Without `has_noise`, norm weights are one and biases are zero.
    """
    is_vector = len(shape) == 1
    mean = 1.0 if is_vector and not name.endswith(".bias") else 0.0
    if is_vector and not has_noise:
        return torch.full(shape, mean, dtype=dtype)
    if is_vector:
        std = _NOISE_STD
    elif "embed" in name:
        std = _EMBEDDING_STD
    else:
        head_gain = _SCORE_GAIN if name == "score.weight" else _CLASSIFIER_GAIN
        std = (1.0 if shape[0] > 1 else head_gain) / math.sqrt(shape[1])
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    tensor = torch.empty(shape, dtype=dtype)
    flat = tensor.view(-1)
    drawn = torch.empty(min(_CHUNK, flat.numel()), dtype=torch.float32)
    for start in range(0, flat.numel(), _CHUNK):
        chunk = flat[start : start + _CHUNK]
        chunk.copy_(drawn[: chunk.numel()].normal_(mean, std, generator=generator))
    return tensor
