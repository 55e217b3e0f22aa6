"""Saves, loads and interpolates trained weights. Frozen weights are not saved."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from training.model import Scorer

__all__ = ["interpolate", "learnt", "load", "save"]


def learnt(model: Scorer) -> dict[str, torch.Tensor]:
    """Copies of all trainable weights, by name."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad and weight.numel()}
    return {name: weight.detach().clone() for name, weight in trained.items()}


def save(model: Scorer, path: Path) -> None:
    """Saves all trainable weights atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: weight.contiguous() for name, weight in learnt(model).items()}, partial)
    partial.replace(path)


def load(model: Scorer, path: Path) -> None:
    """Loads weights from a file. Weights missing in the file are unchanged. Raises `KeyError` for unknown names."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in load_file(path).items():
            if weight.numel():  # empty: the gates of a model without cross layers
                weights[name].copy_(weight)


def interpolate(model: Scorer, start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], share: float) -> None:
    """Sets the weights to `(1 - share) * start + share * end`, as in WiSE-FT (arXiv 2109.01903)."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in end.items():
            weights[name].copy_(torch.lerp(start[name], weight, share))
