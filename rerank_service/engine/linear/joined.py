"""Joins linear layers that read the same input into one product: queries, keys and values, and the gate and up layers.

One large product keeps a GPU busier than three small ones, and in 8 bits its input is quantised once. The joined
modules replace those of transformers' Llama, Mistral, Qwen, Gemma, BERT and RoBERTa, and compute the same formulas.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rerank_service.engine.device.forward import PACKED_ATTENTION, PACKED_CAUSAL_ATTENTION

__all__ = ["JoinedAttention", "JoinedFeedForward", "JoinedSelfAttention", "join_linears"]

_Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, each [1, T, D]


class JoinedAttention(torch.nn.Module):
    """Attention of a decoder, with one product for all its heads."""

    def __init__(self, separate: Any) -> None:
        """`separate` is transformers' module. Its weights move into this module."""
        super().__init__()
        self._attention = separate.config._attn_implementation
        self.scaling = separate.scaling
        self._head_size = separate.head_dim
        layers = (separate.q_proj, separate.k_proj, separate.v_proj)
        self._num_heads = [layer.out_features // separate.head_dim for layer in layers]
        self.qkv_proj = _joined(*layers)
        self.o_proj = separate.o_proj
        self.q_norm = getattr(separate, "q_norm", None)  # only Qwen3 has these two
        self.k_norm = getattr(separate, "k_norm", None)

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: _Rotation, **options: Any
    ) -> tuple[torch.Tensor, None]:
        """Maps states `[1, T, H]` to states. Has the signature of transformers' attention modules."""
        query, key, value = _heads(self.qkv_proj(hidden_states), self._head_size).split(self._num_heads, 1)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        return self.o_proj(_attend(self, query, key, value, options)), None


class JoinedSelfAttention(torch.nn.Module):
    """Attention of BERT and RoBERTa, with one product for its heads; the next module has the output layer."""

    def __init__(self, separate: Any) -> None:
        """`separate` is transformers' module. Its weights move into this module."""
        super().__init__()
        self._attention = separate.config._attn_implementation
        self.scaling = separate.scaling
        self.head_size = separate.attention_head_size
        self.qkv = _joined(separate.query, separate.key, separate.value)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
    ) -> tuple[torch.Tensor, None]:
        """Maps states `[1, T, H]` to attended values. Has the signature of transformers' attention modules."""
        query, key, value = _heads(self.qkv(hidden_states), self.head_size).chunk(3, 1)
        return _attend(self, query, key, value, options), None


class JoinedFeedForward(torch.nn.Module):
    """`down(activation(gate(x)) * up(x))` with one product for gate and up."""

    def __init__(self, separate: Any) -> None:
        """`separate` is transformers' module. Its weights move into this module."""
        super().__init__()
        self.gate_up_proj = _joined(separate.gate_proj, separate.up_proj)
        self.act_fn = separate.act_fn
        self.down_proj = separate.down_proj

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(states).chunk(2, -1)
        outputs: torch.Tensor = self.down_proj(self.act_fn(gate) * up)
        return outputs


_JOINED: dict[str, Callable[[Any], torch.nn.Module]] = {
    **{f"{family}Attention": JoinedAttention for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma")},
    **{f"{family}MLP": JoinedFeedForward for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma")},
    **{f"{family}SelfAttention": JoinedSelfAttention for family in ("Bert", "Roberta", "XLMRoberta")},
}
"""Replacement for each of transformers' classes, by the name of the class: importing the classes of all families takes
seconds."""


@torch.inference_mode()
def join_linears(model: torch.nn.Module, *, only_encoders: bool = False) -> None:
    """Joins the linear layers of `model` in place, one module at a time, so that little memory is needed meanwhile.

    Attention is joined only in models with packed attention. Other classes than the known ones stay as they are; with
    `only_encoders`, decoders do so too.
    """
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            replacement = _JOINED.get(type(child).__name__)
            if replacement is None or not type(child).__module__.startswith("transformers.models."):
                continue
            if only_encoders and replacement is not JoinedSelfAttention:
                continue
            if replacement is JoinedFeedForward or _is_packed(child):
                setattr(owner, name, replacement(child))


def _is_packed(attention: Any) -> bool:
    name: str | None = attention.config._attn_implementation
    return name in (PACKED_ATTENTION, PACKED_CAUSAL_ATTENTION)


def _joined(*separate: torch.nn.Linear) -> torch.nn.Linear:
    """One layer whose outputs are those of all `separate` layers, in this order."""
    first = separate[0]
    joined = torch.nn.Linear(first.in_features, sum(layer.out_features for layer in separate), device="meta")
    joined.weight = _parameter([layer.weight for layer in separate])
    joined.bias = None if first.bias is None else _parameter([layer.bias for layer in separate])
    return joined


def _parameter(parts: list[torch.Tensor]) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.cat(parts), requires_grad=False)


def _heads(states: torch.Tensor, size: int) -> torch.Tensor:
    """Splits states `[1, T, heads * size]` into heads `[1, heads, T, size]`, without a copy."""
    return states.view(*states.shape[:-1], -1, size).transpose(1, 2)


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """Calls the packed attention that the model was loaded with; returns `[1, T, heads * size]`."""
    function = ALL_ATTENTION_FUNCTIONS[module._attention]
    attended: torch.Tensor
    attended, _ = function(module, query, key, value, None, scaling=module.scaling, packed=options["packed"])
    return attended.reshape(*attended.shape[:-2], -1)
