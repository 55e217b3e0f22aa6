"""Models whose publishers ship their own code, written down from that code in plain torch, in float32.

One sequence at a time, with full matrices. Shares no code with the engines or with transformers.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from safetensors.torch import load_file

from rerank_service.errors import CheckpointError

__all__ = ["PLAIN_CLASSIFIERS", "PlainGte", "PlainMiniCpm"]


class _PlainModel:
    """The tensors and settings of a checkpoint, with the attributes of a transformers model that references read."""

    base_model = None

    def __init__(self, folder: Path, device: torch.device) -> None:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if "quantization_config" in raw:
            raise CheckpointError(
                f"{folder} is quantised, and verify's reference of this family reads float weights only; compare its "
                "rankings with those of the original model by rerank-service eval"
            )
        self.config: Any = SimpleNamespace(**raw)
        self.device = device
        self._tensors = {
            name: tensor.to(device, torch.float32)
            for path in sorted(folder.glob("*.safetensors"))
            for name, tensor in load_file(path).items()
        }

    def parameters(self) -> Iterable[torch.Tensor]:
        """All tensors."""
        return self._tensors.values()

    def _linear(self, states: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(states, self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias"))


class PlainGte(_PlainModel):
    """`NewForSequenceClassification`. Source: modeling.py of Alibaba-NLP/new-impl, without unpadding."""

    @torch.inference_mode()
    def __call__(self, input_ids: torch.Tensor, **_: torch.Tensor) -> SimpleNamespace:
        """Logits `[1, 1]` of token ids `[1, L]`."""
        embeddings, config = "new.embeddings", self.config
        states = self._tensors[f"{embeddings}.word_embeddings.weight"][input_ids[0]]  # [L, H]
        if config.type_vocab_size:
            states = states + self._tensors[f"{embeddings}.token_type_embeddings.weight"][0]
        states = self._norm(states, f"{embeddings}.LayerNorm")
        angles = torch.outer(torch.arange(len(states), device=self.device), self._frequencies()).repeat(1, 2)  # [L, D]
        for layer in range(config.num_hidden_layers):
            name = f"new.encoder.layer.{layer}"
            attended = self._attention(states, angles, f"{name}.attention")
            states = self._norm(states + attended, f"{name}.attn_ln")
            up, gate = self._linear(states, f"{name}.mlp.up_gate_proj").chunk(2, -1)
            states = self._norm(states + self._linear(F.gelu(gate) * up, f"{name}.mlp.down_proj"), f"{name}.mlp_ln")
        pooled = self._linear(states[:1], "new.pooler.dense").tanh()
        return SimpleNamespace(logits=self._linear(pooled, "classifier"))

    def _norm(self, states: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return F.layer_norm(states, weight.shape, weight, bias, self.config.layer_norm_eps)

    def _frequencies(self) -> torch.Tensor:
        """Rotary frequencies `[D/2]`, with fixed NTK scaling (equation 6 of kexue.fm/archives/9706)."""
        size = self.config.hidden_size // self.config.num_attention_heads
        exponents = torch.arange(0, size, 2, device=self.device).float() / size
        if not self.config.rope_scaling:
            return 1.0 / torch.pow(self.config.rope_theta, exponents)
        factor = self.config.rope_scaling["factor"]
        scaled: torch.Tensor = 1.0 / torch.pow(self.config.rope_theta * factor, exponents) / factor ** (2 / size)
        return scaled

    def _attention(self, states: torch.Tensor, angles: torch.Tensor, name: str) -> torch.Tensor:
        heads = self.config.num_attention_heads
        query, key, value = (
            part.view(len(states), heads, -1).transpose(0, 1)
            for part in self._linear(states, f"{name}.qkv_proj").chunk(3, -1)
        )
        query, key = _rotated(query, angles), _rotated(key, angles)
        weights = (query @ key.transpose(1, 2) / query.size(-1) ** 0.5).softmax(-1)  # [A, L, L]
        return self._linear((weights @ value).transpose(0, 1).flatten(1), f"{name}.o_proj")


class PlainMiniCpm(_PlainModel):
    """`LayerWiseMiniCPMForCausalLM` with simple heads. Source: modeling_minicpm_reranker.py of FlagEmbedding at commit
    99dfb3d, with eager attention."""

    def __init__(self, folder: Path, device: torch.device, num_layers: int | None = None) -> None:
        """`num_layers` is the published code's `cutoff_layers`."""
        super().__init__(folder, device)
        self._num_layers = num_layers or self.config.num_hidden_layers

    @torch.inference_mode()
    def __call__(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """Logits `[1, 1]` of the last of the token ids `[1, L]`."""
        config = self.config
        states = self._tensors["model.embed_tokens.weight"][input_ids[0]] * config.scale_emb  # [L, H]
        size = config.hidden_size // config.num_attention_heads
        frequencies = 1.0 / torch.pow(config.rope_theta, torch.arange(0, size, 2, device=self.device).float() / size)
        angles = torch.outer(torch.arange(len(states), device=self.device), frequencies).repeat(1, 2)  # [L, D]
        scale = config.scale_depth / config.num_hidden_layers**0.5
        for layer in range(self._num_layers):
            name = f"model.layers.{layer}"
            states = states + scale * self._attention(self._norm(states, f"{name}.input_layernorm"), angles, name)
            inner = self._norm(states, f"{name}.post_attention_layernorm")
            gated = F.silu(self._linear(inner, f"{name}.mlp.gate_proj")) * self._linear(inner, f"{name}.mlp.up_proj")
            states = states + scale * self._linear(gated, f"{name}.mlp.down_proj")
        head = f"lm_head.{self._num_layers - config.start_layer}.linear_head"
        return SimpleNamespace(logits=self._linear(self._norm(states[-1:], "model.norm"), head))

    def _norm(self, states: torch.Tensor, name: str) -> torch.Tensor:
        variance = states.pow(2).mean(-1, keepdim=True)
        return states * torch.rsqrt(variance + self.config.rms_norm_eps) * self._tensors[f"{name}.weight"]

    def _attention(self, states: torch.Tensor, angles: torch.Tensor, layer: str) -> torch.Tensor:
        heads, key_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        query, key, value = (
            self._linear(states, f"{layer}.self_attn.{part}_proj").view(len(states), -1, angles.size(1)).transpose(0, 1)
            for part in "qkv"
        )
        query, key = _rotated(query, angles), _rotated(key, angles)
        key, value = (part.repeat_interleave(heads // key_heads, 0) for part in (key, value))
        later = torch.ones(len(states), len(states), dtype=torch.bool, device=self.device).triu(1)
        weights = (query @ key.transpose(1, 2) / query.size(-1) ** 0.5).masked_fill(later, -torch.inf).softmax(-1)
        return self._linear((weights @ value).transpose(0, 1).flatten(1), f"{layer}.self_attn.o_proj")


PLAIN_CLASSIFIERS: dict[str, type[PlainGte]] = {"new": PlainGte}
"""Class for each `model_type` of classifiers that transformers has under another name."""


def _rotated(states: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, -1)
    return states * angles.cos() + torch.cat([-second, first], -1) * angles.sin()
