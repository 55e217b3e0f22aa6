"""Replaces the linear layers of a loaded model with quantised layers, with packed layers on a CPU, and with joined
layers, where possible.

Works on any transformers model. The layers inside a `ModuleList` are treated as the model's transformer layers.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from transformers.activations import GELUActivation

from rerank_service.config import Dtype
from rerank_service.engine.device.encoder_layers import replace_encoder_layers
from rerank_service.engine.device.precision import Precision
from rerank_service.engine.device.residuals import defer_residuals
from rerank_service.engine.linear.calibrated_int8 import CalibratedInt8Linear, quantise_feed_forward
from rerank_service.engine.linear.calibration import observe_inputs
from rerank_service.engine.linear.float8 import Float8Linear, can_be_float8
from rerank_service.engine.linear.int8 import Int8Linear
from rerank_service.engine.linear.joined import join_linears
from rerank_service.engine.linear.packed import PackedLinear, can_pack

__all__ = ["prepare_linears"]


@torch.inference_mode()
def prepare_linears(
    model: torch.nn.Module,
    precision: Precision,
    run_calibration: Callable[[], object] | None = None,
    *,
    first_tokens_only: bool = False,
) -> None:
    """Replaces the linear layers of `model` in place, and converts its other parameters to `precision.states`.

    Only transformer layers are quantised, because a pooler or a head is small and determines the logit. In int8, the
    layers that `run_calibration` calls get fixed scales; all other layers compute a scale for each row. With
    `first_tokens_only`, a packed encoder on a CPU then computes only the final states of first tokens. A trainable
    model stays as it is.
    """
    if precision.is_trainable:
        return
    device = next(model.parameters()).device
    join_linears(model, only_encoders=device.type == "cpu")
    if device.type == "cpu":
        replace_encoder_layers(model, first_tokens_only=first_tokens_only)
    else:
        defer_residuals(model)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.ModuleList)]
    if precision.quantised is Dtype.INT8:
        if run_calibration is not None:
            _calibrate(layers, precision.states, run_calibration)
        for owner, name, linear in _linears(layers):
            setattr(owner, name, Int8Linear(linear, _take_activation(owner, name)))
    elif precision.quantised is Dtype.FLOAT8:
        for owner, name, linear in _linears(layers):
            if can_be_float8(linear):
                setattr(owner, name, Float8Linear(linear, _take_activation(owner, name)))
    # Convert only now: quantising reads the weights as published. Buffers keep their type, so rotary frequencies stay
    # float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(precision.states)
    if device.type == "cpu" and can_pack(precision.states):
        for owner, name, linear in _linears([model]):
            setattr(owner, name, PackedLinear(linear, _take_activation(owner, name)))


def _calibrate(layers: list[Any], states: torch.dtype, run: Callable[[], object]) -> None:
    ranges = observe_inputs((linear for _, _, linear in _linears(layers)), run)
    for block in (module for root in layers for module in root.modules() if _is_bert_feed_forward(module)):
        up, down = block.intermediate.dense, block.output.dense
        if up in ranges and down in ranges:
            _take_activation(block.intermediate, "dense")
            halves = quantise_feed_forward(up, down, ranges[up], ranges[down], states)
            block.intermediate.dense, block.output.dense = halves
    for owner, name, linear in _linears(layers):
        if linear in ranges:
            setattr(owner, name, CalibratedInt8Linear(linear, ranges[linear], states, _take_activation(owner, name)))


def _is_bert_feed_forward(block: Any) -> bool:
    """Whether `block` consists of `intermediate.dense`, GELU and `output.dense`, in this order."""
    first, second = getattr(block, "intermediate", None), getattr(block, "output", None)
    has_gelu = isinstance(getattr(first, "intermediate_act_fn", None), GELUActivation)
    return has_gelu and all(isinstance(getattr(half, "dense", None), torch.nn.Linear) for half in (first, second))


def _linears(roots: list[Any]) -> Iterator[tuple[Any, str, torch.nn.Linear]]:
    """Each linear layer below `roots`, with its owner and its attribute name; the caller may replace it at once."""
    for root in roots:
        for owner in list(root.modules()):
            for name, child in list(owner.named_children()):
                if isinstance(child, torch.nn.Linear):
                    yield owner, name, child


def _take_activation(owner: Any, name: str) -> Literal["none", "gelu"]:
    """Removes the GELU that a BERT-like feed-forward applies to this layer's output. Returns the removed activation."""
    if name == "dense" and isinstance(getattr(owner, "intermediate_act_fn", None), GELUActivation):
        owner.intermediate_act_fn = torch.nn.Identity()
        return "gelu"
    return "none"
