"""The default model's encoder and head, with additional weights that do not change its scores before training.

Training changes the encoder's upper layers, the weight of each query token, and bonuses for exact token matches and for
the passage's best window. In a cross-encoder, it also changes gated attention from passage tokens to query tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import nn
from transformers import BertModel

from rerank_service.config import LateInteractionHead
from rerank_service.engine.text.tokenise import load_tokenizer

__all__ = ["Encoded", "Head", "Scorer"]

_DEFAULT = LateInteractionHead()
_IN_FLOAT32 = torch.autocast("cpu", enabled=False)
"""Like the engine, the head compares states in float32, whatever the precision of the encoder."""


_NUM_LAYERS = 6
_WINDOW_TOKENS = 32


@dataclass
class Encoded:
    """B texts, padded to one length."""

    token_ids: torch.Tensor  # [B, L]
    mask: torch.Tensor  # [B, L] bool, False where padded
    words: torch.Tensor  # [B, L] bool, without padding, CLS and SEP
    embeddings: torch.Tensor  # [B, L, H]: token embeddings
    states: torch.Tensor  # [B, L, H] float32: final
    below: list[torch.Tensor] = field(default_factory=list)  # [B, L, H] each: inputs of the cross layers

    def __getitem__(self, rows: Any) -> "Encoded":
        tensors = (self.token_ids, self.mask, self.words, self.embeddings, self.states)
        return Encoded(*(tensor[rows] for tensor in tensors), [states[rows] for states in self.below])


class Head(nn.Module):
    """Computes a logit from token states: cosine of the means, weighted MaxSim, and share of exactly matched tokens."""

    def __init__(self, hidden_size: int, vocabulary_size: int) -> None:
        super().__init__()
        self.cosine_weight = nn.Parameter(torch.tensor(_DEFAULT.cosine_weight))
        self.maxsim_weight = nn.Parameter(torch.tensor(_DEFAULT.maxsim_weight))
        self.lexical_weight = nn.Parameter(torch.tensor(0.0))
        self.window_weight = nn.Parameter(torch.tensor(0.0))
        self.bias = nn.Parameter(torch.tensor(_DEFAULT.bias))
        self.importance = nn.Linear(2 * hidden_size + 1, 2)
        nn.init.zeros_(self.importance.weight)
        nn.init.zeros_(self.importance.bias)
        self._log_vocabulary = math.log(vocabulary_size)

    @_IN_FLOAT32
    def all_pairs(self, queries: Encoded, passages: Encoded) -> torch.Tensor:
        """Logits `[Q, P]` of every query with every passage."""
        q, p = F.normalize(queries.states, dim=-1), F.normalize(passages.states, dim=-1)
        sims = q.flatten(0, 1) @ p.flatten(0, 1).T  # [Q * Lq, P * Lp]
        sims = sims.view(*q.shape[:2], *p.shape[:2])
        best = sims.masked_fill(~passages.mask, -1.0).amax(-1)  # [Q, Lq, P]
        same = queries.token_ids[:, :, None, None] == passages.token_ids
        means = _means(queries)  # [Q, H]
        cosine = means @ _means(passages).T
        window = torch.einsum("qh,pwh->qpw", means, _window_means(passages)).amax(-1)  # [Q, P]
        weights = self.token_weights(queries)[:, :, None]  # [Q, Lq, 1, 2]
        return self._join(cosine, window, (weights[..., 0] * best).sum(1), (weights[..., 1] * same.any(-1)).sum(1))

    @_IN_FLOAT32
    def own_pairs(self, queries: Encoded, passages: Encoded) -> torch.Tensor:
        """Logits `[B]` of each query with the passage in the same row."""
        sims = F.normalize(queries.states, dim=-1) @ F.normalize(passages.states, dim=-1).transpose(1, 2)
        best = sims.masked_fill(~passages.mask[:, None], -1.0).amax(-1)  # [B, Lq]
        same = (queries.token_ids[:, :, None] == passages.token_ids[:, None]).any(-1)
        means = _means(queries)  # [B, H]
        cosine = (means * _means(passages)).sum(-1)
        window = torch.einsum("bh,bwh->bw", means, _window_means(passages)).amax(-1)  # [B]
        weights = self.token_weights(queries)  # [B, Lq, 2]
        return self._join(cosine, window, (weights[..., 0] * best).sum(-1), (weights[..., 1] * same).sum(-1))

    def token_weights(self, queries: Encoded) -> torch.Tensor:
        """Weights of the query's words in MaxSim and in exact matches, `[Q, Lq, 2]`; equal before training.

        BERT's vocabulary is sorted by frequency, so the logarithm of a token's id measures the token's rarity.
        """
        scale = queries.states.size(-1) ** 0.5
        rarity = queries.token_ids.clamp(min=1).log() / self._log_vocabulary - 0.8
        parts = (
            F.normalize(queries.states, dim=-1) * scale,
            F.normalize(queries.embeddings, dim=-1) * scale,
            10 * rarity[..., None],
        )
        scores = self.importance(torch.cat(parts, -1)).masked_fill(~queries.words[..., None], -torch.inf)
        return scores.softmax(1)

    def _join(
        self, cosine: torch.Tensor, window: torch.Tensor, maxsim: torch.Tensor, found: torch.Tensor
    ) -> torch.Tensor:
        return (
            self.cosine_weight * cosine
            + self.window_weight * window
            + self.maxsim_weight * maxsim
            + self.lexical_weight * found
            + self.bias
        )


class Scorer(nn.Module):
    """An encoder with a head; a cross-encoder if `num_cross_layers` is above 0."""

    def __init__(self, folder: Path, *, window_tokens: int, num_frozen_layers: int, num_cross_layers: int) -> None:
        super().__init__()
        if num_cross_layers > _NUM_LAYERS - num_frozen_layers:
            raise ValueError(f"{num_cross_layers} cross layers overlap the {num_frozen_layers} frozen layers")
        self.window_tokens = window_tokens
        self.num_cross_layers = num_cross_layers
        self.num_frozen_layers = num_frozen_layers
        self._tokenizer = load_tokenizer(folder)
        self.encoder = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
        self.encoder.eval()  # no dropout: one epoch hardly overfits, and dropout would disturb pretrained weights
        config = self.encoder.config
        self._num_heads = config.num_attention_heads
        self.head = Head(config.hidden_size, config.vocab_size)
        self.gates = nn.Parameter(torch.zeros(num_cross_layers, self._num_heads))
        for part in (self.encoder.embeddings, *self.encoder.encoder.layer[:num_frozen_layers]):
            part.requires_grad_(False)

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with CLS and SEP, truncated to the window."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        return [
            text if len(text) <= self.window_tokens else [*text[: self.window_tokens - 1], text[-1]] for text in ids
        ]

    def encode(self, texts: Sequence[list[int]], context: Encoded | None = None) -> Encoded:
        """States of the texts. In the cross layers, text b also attends to row b of `context`."""
        return self.finish(self.begin(texts), context)

    @torch.no_grad()
    def begin(self, texts: Sequence[list[int]]) -> Encoded:
        """States after the frozen layers. Models with the same number of frozen layers share these states."""
        token_ids = nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
        lengths = torch.tensor([len(text) for text in texts])[:, None]
        positions = torch.arange(token_ids.size(1))
        mask = positions < lengths
        words = (positions > 0) & (positions < lengths - 1) | (mask & (lengths <= 2))
        embeddings = self.encoder.embeddings.word_embeddings(token_ids)
        states = self.encoder.embeddings(token_ids)
        for layer in self.encoder.encoder.layer[: self.num_frozen_layers]:
            states = self._layer(layer, states, mask, None)
        return Encoded(token_ids, mask, words, embeddings, states)

    def finish(self, begun: Encoded, context: Encoded | None = None) -> Encoded:
        """States after the remaining layers, with this model's own weights."""
        states, below = begun.states, []
        layers = self.encoder.encoder.layer
        first_cross = len(layers) - self.num_cross_layers
        for index in range(self.num_frozen_layers, len(layers)):
            cross, reads = index - first_cross, None
            if cross >= 0 and context is None:
                below.append(states)
            elif cross >= 0 and context is not None:
                reads = (self.gates[cross], context.below[cross], context.mask)
            states = self._layer(layers[index], states, begun.mask, reads)
        return replace(begun, states=states.float(), below=below)

    def _layer(
        self,
        layer: Any,
        states: torch.Tensor,
        mask: torch.Tensor,
        reads: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """States after a BERT layer whose self-attention is extended by gated attention to another text, if given."""
        project, query = layer.attention.self, self._heads(layer.attention.self.query(states))
        attended = self._attend(query, project, states, mask)
        if reads is not None:
            gate, context, context_mask = reads
            attended = attended + gate[:, None, None] * self._attend(query, project, context, context_mask)
        attended = attended.transpose(1, 2).flatten(2)
        states = layer.attention.output.LayerNorm(layer.attention.output.dense(attended) + states)
        return layer.output.LayerNorm(layer.output.dense(F.gelu(layer.intermediate.dense(states))) + states)

    def _attend(self, query: torch.Tensor, project: Any, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        key, value = self._heads(project.key(states)), self._heads(project.value(states))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self._num_heads, -1)).transpose(1, 2)  # [B, heads, L, D]


def _window_means(texts: Encoded) -> torch.Tensor:
    """Normalised means `[B, W, H]` of windows that overlap by half; zeros for windows that are less than half
    full, except the first window of a text."""
    half = _WINDOW_TOKENS // 2
    states = F.pad((texts.states * texts.mask[..., None]).transpose(1, 2), (0, _WINDOW_TOKENS))  # [B, H, L + 32]
    means = F.avg_pool1d(states, _WINDOW_TOKENS, half).transpose(1, 2)
    starts = torch.arange(means.size(1)) * half
    is_full = (starts == 0) | (starts + half <= texts.mask.sum(1, keepdim=True))  # [B, W]
    return F.normalize(means, dim=-1) * is_full[..., None]


def _means(texts: Encoded) -> torch.Tensor:
    summed = (texts.states * texts.mask[..., None]).sum(1)
    return F.normalize(summed / texts.mask.sum(1, keepdim=True), dim=-1)
