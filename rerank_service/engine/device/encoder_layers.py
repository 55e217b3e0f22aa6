"""Replaces the layers of BERT and RoBERTa on a CPU with layers that compute only what a packed forward pass needs.

transformers' layers also handle decoding, cross-attention, dropout and chunks, whatever the batch. They compute the
same formulas.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from rerank_service.engine.device.forward import attend_sequence, padded_length, products_for, weights_memory
from rerank_service.engine.device.pack import PackedSequences
from rerank_service.engine.linear.joined import JoinedSelfAttention

__all__ = ["EncoderLayer", "attend_joined", "replace_encoder_layers"]


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


def attend_joined(qkv: torch.Tensor, head_size: int, scaling: float, packed: PackedSequences) -> torch.Tensor:
    """Packed attention without a causal mask, of queries, keys and values that one product computed.

    Maps `[1, T, 3 * Hq * D]` to `[1, T, Hq * D]`. Each sequence is copied once, because products of matrices that are
    not contiguous would copy its queries, keys and values one by one.
    """
    num_tokens, num_heads = packed.bounds[-1], qkv.size(-1) // head_size // 3
    out = qkv.new_empty(qkv.size(1), num_heads, head_size)
    memory = weights_memory(qkv.dtype, num_heads, packed.max_length)
    copies = qkv.new_empty(3 * num_heads * padded_length(packed.max_length) * head_size)
    for number, (start, end) in enumerate(pairwise(packed.bounds)):
        length = end - start
        heads = qkv[0, start:end].view(length, -1, head_size).transpose(0, 1)  # [3 * Hq, L, D]
        attend = None if packed.num_seen is not None else products_for(qkv.dtype, length, head_size, sees_later=True)
        num_rows = length if attend is None else padded_length(length)
        copy = copies[: len(heads) * num_rows * head_size].view(len(heads), num_rows, head_size)
        copy[:, :length] = heads
        copy[:, length:].zero_()
        q, k, v = copy[:num_heads], copy[num_heads : 2 * num_heads], copy[2 * num_heads :]
        of_sequence = out[start:end].transpose(0, 1)
        if attend is not None:
            attend(q, k, v, scaling, True, memory, of_sequence)
            continue
        if packed.num_seen is not None:
            k, v = k[:, : packed.num_seen[number]], v[:, : packed.num_seen[number]]
        of_sequence.copy_(attend_sequence(q[None], k[None], v[None], scaling, True, None)[0])
    out[num_tokens:] = out[num_tokens - 1]
    return out.view(1, len(out), -1)


def _add_and_norm(output: Any, inputs: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    norm = output.LayerNorm
    return F.layer_norm(output.dense(inputs).add_(states), norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def replace_encoder_layers(model: torch.nn.Module) -> None:
    """Replaces all layers of `model` that have joined attention, in place."""
    for layers in [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]:
        for index, layer in enumerate(layers):
            if isinstance(getattr(getattr(layer, "attention", None), "self", None), JoinedSelfAttention):
                layers[index] = EncoderLayer(layer)
