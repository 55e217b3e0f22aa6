"""Replaces the layers of BERT and RoBERTa on a CPU with layers that compute only what a packed forward pass needs.

transformers' layers also handle decoding, cross-attention, dropout and chunks, whatever the batch. These layers
compute the same formulas. If the model's head reads only the first token of each sequence, the last layer computes only
these tokens: all tokens take part only as keys and values.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from rerank_service.engine.device.forward import (
    attend_sequence,
    padded_length,
    products_for,
    shared_rows,
    weights_memory,
)
from rerank_service.engine.device.pack import PackedSequences
from rerank_service.engine.linear.joined import JoinedSelfAttention

__all__ = ["EncoderLayer", "FirstTokenLayer", "attend_joined", "replace_encoder_layers"]


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
        return self._after_attention(attend_joined(self.qkv(states), self._head_size, self._scaling, packed), states)

    def _after_attention(self, attended: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        states = _add_and_norm(self.attention_output, attended, states)
        between = self.intermediate.intermediate_act_fn(self.intermediate.dense(states))
        return _add_and_norm(self.output, between, states)


class FirstTokenLayer(EncoderLayer):
    """A last layer that computes only the first token of each sequence: maps states `[1, T, H]` to `[1, B, H]`.

    With a single query, no token needs a key or a value: the query is mapped back through the weights of the keys, and
    the weighted sum of the states is mapped through those of the values. The bias of the keys adds the same to all
    scores of a head, so softmax ignores it. The two weights stay in float32, whatever the precision.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        width = self.qkv.out_features // 3
        self.query = _first_outputs(self.qkv, width)
        weights = self.qkv.weight.detach()[width:].to(torch.float32, copy=True)
        self._key, self._value = weights.view(2, -1, self._head_size, self.qkv.in_features)  # each [Hq, D, H]
        self._value_bias = None if self.qkv.bias is None else self.qkv.bias.detach()[2 * width :].float()
        del self.qkv

    def forward(self, states: torch.Tensor, *_: Any, packed: PackedSequences, **__: Any) -> torch.Tensor:
        """See `EncoderLayer`."""
        num_sequences = len(packed.bounds) - 1
        num_more = shared_rows(num_sequences) - num_sequences  # they repeat the first token of all
        first = states[:, F.pad(packed.cu_seqlens[:-1], (0, num_more))]
        queries = self.query(first)[0].float().view(first.size(1), -1, 1, self._head_size)
        attended = torch.empty_like(first)
        for number, (start, end) in enumerate(pairwise(packed.bounds)):
            # Copies, because MKL promises equal sums only for equal alignment.
            of_sequence = states[0, start:end].to(torch.float32, copy=True)
            attended[0, number] = self._attend(queries[number].clone(), of_sequence)
        attended[0, num_sequences:] = attended[0, 0]
        return self._after_attention(attended, first)[:, :num_sequences]

    def _attend(self, query: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Maps a query `[Hq, 1, D]` and states `[L, H]` to attended values `[Hq * D]`."""
        scores = (query @ self._key)[:, 0] @ states.T  # [Hq, L]
        mixed = torch.softmax(scores * self._scaling, -1) @ states  # [Hq, H]
        values: torch.Tensor = (mixed[:, None] @ self._value.mT).flatten()
        return values if self._value_bias is None else values + self._value_bias


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


def _first_outputs(linear: torch.nn.Linear, count: int) -> torch.nn.Linear:
    """A layer that computes only the first outputs of `linear`, with the same weights."""
    some = torch.nn.Linear(linear.in_features, count, device="meta")
    some.weight = torch.nn.Parameter(linear.weight[:count], requires_grad=False)
    some.bias = None if linear.bias is None else torch.nn.Parameter(linear.bias[:count], requires_grad=False)
    return some


def replace_encoder_layers(model: torch.nn.Module, *, first_tokens_only: bool = False) -> None:
    """Replaces all layers of `model` that have joined attention, in place. With `first_tokens_only`, the model then
    computes only the final states of the first token of each sequence."""
    for layers in [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]:
        for index, layer in enumerate(layers):
            if isinstance(getattr(getattr(layer, "attention", None), "self", None), JoinedSelfAttention):
                is_last = index == len(layers) - 1
                layers[index] = FirstTokenLayer(layer) if first_tokens_only and is_last else EncoderLayer(layer)
