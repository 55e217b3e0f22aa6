"""Calibration: measures the ranges of the inputs to a model's linear layers on a few texts.

`calibrated_int8` derives its fixed scales from these ranges. Works on any model.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from rerank_service.engine.linear.sample_text import SAMPLE_TEXT
from rerank_service.engine.linear.threads import one_thread
from rerank_service.engine.protocol import PairT, Truncate

__all__ = ["InputRange", "calibration_pairs", "observe_inputs"]

_QUERY = "How much protein should a female eat?"


@dataclass(frozen=True, slots=True)
class InputRange:
    """Lowest and highest value of each input channel, `[K]` float32."""

    lowest: torch.Tensor
    highest: torch.Tensor


def calibration_pairs(tokenise: Callable[[str, Sequence[str], Truncate], list[PairT]]) -> list[PairT]:
    """Pairs of one query with prose, code, numbers and several scripts: paragraphs of about 100 tokens, and lines.

    `tokenise` is the method of the engine that is calibrated.
    """
    lines = [line for line in SAMPLE_TEXT.splitlines() if line]
    paragraphs = [text.replace("\n", " ") for text in SAMPLE_TEXT.split("\n\n")]
    return tokenise(_QUERY, [*paragraphs, *lines], Truncate.END)


@torch.inference_mode()
def observe_inputs(layers: Iterable[torch.nn.Linear], run: Callable[[], object]) -> dict[torch.nn.Linear, InputRange]:
    """Returns the ranges of the inputs to `layers` while `run` calls the model. The result omits layers that were not
    called.

    Plain layers round differently with another number of threads, so one thread computes. The ranges are rounded to
    bfloat16: the last bits of float32 depend on the processor and on torch's version, and would change every scale.
    """
    seen: dict[torch.nn.Linear, InputRange] = {}
    hooks = [layer.register_forward_pre_hook(partial(_observe, seen)) for layer in layers]
    try:
        with one_thread():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: InputRange(_rounded(found.lowest), _rounded(found.highest)) for layer, found in seen.items()}


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return values.bfloat16().float()


def _observe(seen: dict[torch.nn.Linear, InputRange], layer: torch.nn.Linear, inputs: tuple[torch.Tensor]) -> None:
    rows = inputs[0].reshape(-1, layer.in_features).float()
    lowest, highest = rows.amin(0), rows.amax(0)
    if layer in seen:
        lowest, highest = torch.minimum(lowest, seen[layer].lowest), torch.maximum(highest, seen[layer].highest)
    seen[layer] = InputRange(lowest, highest)
