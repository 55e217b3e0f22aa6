"""Moves the last addition of each decoder layer into the next layer, where the compiler fuses it with a norm.

A decoder layer ends with `states + update`. Compiled alone, this addition is a kernel that reads two tensors and writes
one; fused with the norm that reads its result, it saves one launch and one read per layer. Nothing is rounded
differently.
"""

from typing import Any, NamedTuple

import torch

__all__ = ["FinalNorm", "defer_residuals"]


class _Sum(NamedTuple):
    """States `[1, T, H]` that are not added yet."""

    states: torch.Tensor
    update: torch.Tensor


class _Block(torch.nn.Module):
    """A decoder layer of transformers that adds up its two inputs first, and returns two outputs for the next layer to
    add up."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.input_layernorm = layer.input_layernorm
        self.self_attn = layer.self_attn
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.mlp = layer.mlp

    def forward(self, states: torch.Tensor, update: torch.Tensor, **attention: Any) -> _Sum:
        states = states + update
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(states), **attention)
        states = states + attended
        return _Sum(states, self.mlp(self.post_attention_layernorm(states)))


class _DeferringLayer(torch.nn.Module):
    """Calls a `_Block`. The first layer's input is a tensor; zeros make it a sum, so that all layers share one compiled
    function."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.block = _Block(layer)

    def forward(self, states: torch.Tensor | _Sum, **attention: Any) -> _Sum:
        pending = states if isinstance(states, _Sum) else _Sum(states, torch.zeros_like(states))
        result: _Sum = self.block(*pending, **attention)
        return result

    def compile(self, *args: Any, **options: Any) -> None:
        self.block.compile(*args, **options)


class FinalNorm(torch.nn.Module):
    """Adds up the two outputs of the last layer, and applies the model's norm."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, pending: _Sum) -> torch.Tensor:
        normed: torch.Tensor = self.norm(pending.states + pending.update)
        return normed


_DEFERRED = tuple(f"{family}DecoderLayer" for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma"))
"""Names of transformers' classes with the structure of `_Block`."""


def defer_residuals(model: Any) -> None:
    """Changes a decoder of transformers in place; other models stay as they are."""
    layers = getattr(model, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or {type(layer).__name__ for layer in layers} - set(_DEFERRED):
        return
    for index, layer in enumerate(layers):
        layers[index] = _DeferringLayer(layer)
    model.norm = FinalNorm(model.norm)
