"""The training loop. It saves its whole state regularly, and continues from a saved state with the same result."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rerank_service.errors import CheckpointError
from rerank_service.tools.tune.lists import TrainingLists
from rerank_service.tools.tune.model import TrainableModel

__all__ = ["Schedule", "train"]

_WARM_UP_SHARE = 0.06
_LARGEST_GRADIENT = 1.0
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps for each parameter."""


@dataclass(frozen=True)
class Schedule:
    """Length and speed of a training."""

    num_steps: int
    rate: float
    """Highest learning rate."""
    save_every: int = 10


def train(
    model: TrainableModel,
    lists_of: Callable[[int], TrainingLists],
    schedule: Schedule,
    state: Path,
    on_step: Callable[[int, int], object] = lambda *_: None,
) -> list[float]:
    """Trains a model in place, and returns the loss of each step. `lists_of` gives the lists of a step.

    The file `state` is written during training; if it exists, training continues from it. Raises `CheckpointError` if
    a loss is not finite.
    """
    parameters = model.parameters
    optimizer = torch.optim.AdamW(parameters.values(), lr=schedule.rate, weight_decay=0.01, betas=(0.9, 0.99))
    losses = _restore(state, parameters, optimizer) if state.exists() else []
    on_step(len(losses), schedule.num_steps)
    for step in range(len(losses), schedule.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * _rate_share(step, schedule.num_steps)
        optimizer.zero_grad()
        losses.append(model.backward(lists_of(step)))
        if not math.isfinite(losses[-1]):
            raise CheckpointError(f"the loss of step {step + 1} is not a finite number: use a lower --rate")
        torch.nn.utils.clip_grad_norm_(parameters.values(), _LARGEST_GRADIENT)
        optimizer.step()
        if len(losses) % schedule.save_every == 0 or len(losses) == schedule.num_steps:
            _save(state, parameters, optimizer, losses)
        on_step(len(losses), schedule.num_steps)
    return losses


def _rate_share(step: int, num_steps: int) -> float:
    """Factor of the learning rate: linear warm-up, then linear decay to 0."""
    warm_up = max(1, int(num_steps * _WARM_UP_SHARE))
    return min((step + 1) / warm_up, (num_steps - step) / max(1, num_steps - warm_up))


def _save(
    state: Path, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, losses: list[float]
) -> None:
    tensors = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for name, parameter in parameters.items():
        tensors[f"weight {name}"] = parameter.detach().contiguous()
        tensors |= {f"{moment} {name}": optimizer.state[parameter][moment].contiguous() for moment in _MOMENTS}
    partial = state.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(state)  # a killed process leaves the earlier state


def _restore(state: Path, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> list[float]:
    with safe_open(state, framework="pt") as saved, torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved.get_tensor(f"weight {name}"))
            optimizer.state[parameter] = {
                moment: saved.get_tensor(f"{moment} {name}").to("cpu" if moment == "step" else parameter.device)
                for moment in _MOMENTS
            }
        losses: list[float] = saved.get_tensor("losses").tolist()
    return losses
