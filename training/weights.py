"""What was learnt, on disk and between two models; frozen weights stay in the package they come from."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from training.model import Scorer

__all__ = ["interpolate", "learnt", "load", "save"]


def learnt(model: Scorer) -> dict[str, torch.Tensor]:
    """Copies of all that is trained, by name."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad and weight.numel()}
    return {name: weight.detach().clone() for name, weight in trained.items()}


def save(model: Scorer, path: Path) -> None:
    """Writes beside, then renames: a run that is stopped leaves no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: weight.contiguous() for name, weight in learnt(model).items()}, partial)
    partial.replace(path)


def load(model: Scorer, path: Path) -> None:
    """Puts a file's weights into a model; what the file does not have stays as it is. Raises `KeyError`."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in load_file(path).items():
            if weight.numel():  # a model without cross layers has no gates
                weights[name].copy_(weight)


def interpolate(model: Scorer, start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], share: float) -> None:
    """Sets the weights to `(1 - share) * start + share * end`, as WiSE-FT does (arXiv 2109.01903)."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in end.items():
            weights[name].copy_(torch.lerp(start[name], weight, share))
