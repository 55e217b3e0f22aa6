"""What goes into a model's linear layers, seen on a few texts: the ranges that fixed 8-bit scales are made from.

Works on any model.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from rerank_service.engine.linear.calibration_text import TRAINING_TEXT
from rerank_service.engine.protocol import PairT, Truncate

__all__ = ["InputRange", "calibration_pairs", "observe_inputs"]

_QUERY = "How much protein should a female eat?"


@dataclass(frozen=True, slots=True)
class InputRange:
    """Lowest and highest value of each input channel, `[K]` float32."""

    lowest: torch.Tensor
    highest: torch.Tensor


def calibration_pairs(tokenise: Callable[[str, Sequence[str], Truncate], list[PairT]]) -> list[PairT]:
    """A query with prose, code, numbers and other scripts: paragraphs of some hundred tokens, and single lines."""
    lines = [line for line in TRAINING_TEXT.splitlines() if line]
    paragraphs = [text.replace("\n", " ") for text in TRAINING_TEXT.split("\n\n")]
    return tokenise(_QUERY, [*paragraphs, *lines], Truncate.END)


@torch.inference_mode()
def observe_inputs(layers: Iterable[torch.nn.Linear], run: Callable[[], object]) -> dict[torch.nn.Linear, InputRange]:
    """Ranges of the inputs of `layers` while `run` calls the model; a layer that is not called is not in the answer."""
    seen: dict[torch.nn.Linear, InputRange] = {}
    hooks = [layer.register_forward_pre_hook(partial(_observe, seen)) for layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _observe(seen: dict[torch.nn.Linear, InputRange], layer: torch.nn.Linear, inputs: tuple[torch.Tensor]) -> None:
    rows = inputs[0].reshape(-1, layer.in_features).float()
    lowest, highest = rows.amin(0), rows.amax(0)
    if layer in seen:
        lowest, highest = torch.minimum(lowest, seen[layer].lowest), torch.maximum(highest, seen[layer].highest)
    seen[layer] = InputRange(lowest, highest)
