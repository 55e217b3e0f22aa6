"""Replaces the layers of BERT and RoBERTa on a CPU with layers that compute only what a packed forward pass needs.

transformers' layers also handle decoding, cross-attention, dropout and chunks, whatever the batch. They compute the
same formulas.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from rerank_service.engine.device.forward import attend_joined
from rerank_service.engine.device.pack import PackedSequences
from rerank_service.engine.linear.joined import JoinedSelfAttention

__all__ = ["EncoderLayer", "replace_encoder_layers"]


class EncoderLayer(torch.nn.Module):
    """One layer with packed attention: maps states `[1, T, H]` to states."""

    def __init__(self, layer: Any) -> None:
        """`layer` is transformers' layer, with joined attention. Its modules move into this layer."""
        super().__init__()
        attention = layer.attention.self
        self._head_size, self._scaling = attention.head_size, attention.scaling
        self.qkv = attention.qkv
        self.attention_output = layer.attention.output
        self.intermediate = layer.intermediate
        self.output = layer.output

    def forward(self, states: torch.Tensor, *_: Any, packed: PackedSequences, **__: Any) -> torch.Tensor:
        """Has the signature of transformers' layers."""
        attended = attend_joined(self.qkv(states), self._head_size, self._scaling, packed)
        states = _add_and_norm(self.attention_output, attended, states)
        between = self.intermediate.intermediate_act_fn(self.intermediate.dense(states))
        return _add_and_norm(self.output, between, states)


def _add_and_norm(output: Any, inputs: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    norm = output.LayerNorm
    return F.layer_norm(output.dense(inputs).add_(states), norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def replace_encoder_layers(model: torch.nn.Module) -> None:
    """Replaces all layers of `model` that have joined attention, in place."""
    for layers in [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]:
        for index, layer in enumerate(layers):
            if isinstance(getattr(getattr(layer, "attention", None), "self", None), JoinedSelfAttention):
                layers[index] = EncoderLayer(layer)
