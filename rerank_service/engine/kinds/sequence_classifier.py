"""Engine for ordinary cross-encoders with one label, such as BERT, XLM-RoBERTa, GTE, ModernBERT and DeBERTa.

Runs transformers' own classes with their own heads, on pairs encoded by the tokenizer. BERT, (XLM-)RoBERTa and GTE run
packed; other families run in rectangular batches of pairs with equal length or, on a GPU, with similar length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from rerank_service.config import EngineKind
from rerank_service.engine import loading
from rerank_service.engine.device.forward import PACKED_ATTENTION, PADDED_ATTENTION
from rerank_service.engine.device.graphs import states_on
from rerank_service.engine.device.pack import length_sorted_batches, pack, to_device
from rerank_service.engine.device.relative_positions import tabulate_relative_positions
from rerank_service.engine.kinds.checkpoint_engine import CheckpointEngine
from rerank_service.engine.linear.calibration import calibration_pairs
from rerank_service.engine.linear.prepare import prepare_linears
from rerank_service.engine.loading import Checkpoint
from rerank_service.engine.protocol import EncodedPair, TokenIds, Truncate
from rerank_service.engine.text import tokenise
from rerank_service.errors import PairTooLong

__all__ = ["ClassifierPair", "SequenceClassifierEngine"]

_PACKED_FAMILIES = ("bert", "roberta", "xlm-roberta", "gte")
"""Families (`model_type`) whose pairs can be packed: attention is full, and the head reads only the first token."""

_ON_GPU, _ON_CPU = (16_384, 0.10), (512, 0.0)
"""Largest number of tokens in a rectangular batch, and largest share of padding.

On a GPU, small batches cost more than some padding. On a CPU nothing is padded, and only short pairs share a batch.
Compared with one batch of 8 equal pairs, scoring the pairs one by one took 3 times as long with 20 tokens per pair,
1.7 times as long with 70, and half as long with 260 (small random DeBERTa, one thread). Scoring a long pair alone also
keeps its logit the same: in bfloat16, the logits of two equal pairs of 1,014 tokens, scored together, differed in the
last bits from the logit of one pair scored alone (random ModernBERT, torch 2.13.0).
"""


@dataclass(frozen=True, slots=True, eq=False)
class ClassifierPair(EncodedPair):
    """A query and a passage, joined by the tokenizer."""

    type_ids: TokenIds
    """0 for query tokens and 1 for passage tokens, if the model distinguishes them."""


class SequenceClassifierEngine(CheckpointEngine[ClassifierPair]):
    """Runs a transformers classifier with one label, which reads query and passage together."""

    kind = EngineKind.SEQUENCE_CLASSIFIER

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        config = loading.classifier_config(checkpoint.folder)
        self._is_packed = config.model_type in _PACKED_FAMILIES
        self._pad_id = int(config.pad_token_id or 0)
        self._first_position = loading.first_position(checkpoint.raw)
        self._has_type_ids = getattr(config, "type_vocab_size", 0) > 1
        attention = PACKED_ATTENTION if self._is_packed else None
        self._model = self._load_weights(AutoModelForSequenceClassification, config, attention=attention)
        self._masks_on_device = self.device.type != "cpu" and self._model.config._attn_implementation == "sdpa"
        if self._masks_on_device:
            self._model.set_attn_implementation(PADDED_ATTENTION)
        self.backbone = self._model.base_model
        if self.device.type != "cpu":
            tabulate_relative_positions(self.backbone, self.window_tokens)
        self._states = states_on(self.backbone, checkpoint.options)
        prepare_linears(
            self._model,
            self._precision,
            lambda: self.score(calibration_pairs(self.tokenise)),
            first_tokens_only=self._is_packed,
        )

    @property
    def head_weights(self) -> dict[str, Any]:
        """See `CheckpointEngine`."""
        inside = f"{self._model.base_model_prefix}."
        return {name: one for name, one in self._model.named_parameters() if not name.startswith(inside)}

    def passage_room(self, query: str) -> int:
        """See `Engine`. The room for a passage is at least half of the window without special tokens, because a query
        longer than the other half is cut."""
        (encoding,) = self._tokenizer.encode_batch_fast([(query, "")], add_special_tokens=True)
        room = self.window_tokens - encoding.sequence_ids.count(None)
        return max(room - encoding.sequence_ids.count(0), room // 2)

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[ClassifierPair]:
        """See `Engine`. The longer of query and passage is cut first."""
        texts = [(query, passage) for passage in passages]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=True)
        return [self._cut(encoding, truncate, index) for index, encoding in enumerate(encodings)]

    def _cut(self, encoding: Any, truncate: Truncate, index: int) -> ClassifierPair:
        token_ids = np.asarray(encoding.ids, dtype=np.int32)
        type_ids = np.asarray(encoding.type_ids, dtype=np.int32)
        is_too_long, is_passage_cut = len(token_ids) > self.window_tokens, False
        if is_too_long:
            if truncate is Truncate.NONE:
                raise PairTooLong(index, len(token_ids), self.window_tokens)
            kept, is_passage_cut = tokenise.truncate_pair_encoding(encoding, self.window_tokens)
            token_ids, type_ids = token_ids[kept], type_ids[kept]
        return ClassifierPair(token_ids, len(token_ids), is_too_long, type_ids, is_passage_cut=is_passage_cut)

    def forward(self, pairs: Sequence[ClassifierPair]) -> torch.Tensor:
        """The logit of the model's only label, float32 `[B]`."""
        return self._packed(pairs) if self._is_packed else self._padded(pairs)

    def _packed(self, pairs: Sequence[ClassifierPair]) -> torch.Tensor:
        """Scores all pairs, laid end to end. The head reads each pair's first token as a sequence of one token."""
        packed = pack(
            [pair.token_ids for pair in pairs],
            self.device,
            type_ids=[pair.type_ids for pair in pairs] if self._has_type_ids else None,
            first_position=self._first_position,
            shape=self.fixed_shape,
        )
        states = self._states(packed)  # [T, H], or [B, H] if the last layer computes only first tokens
        first = (states if len(states) == len(packed.lengths) else states[packed.cu_seqlens[:-1]])[:, None]  # [B, 1, H]
        if self.backbone.pooler is not None:  # RoBERTa has none
            first = self.backbone.pooler(first)  # [B, H]
        logits: torch.Tensor = self._model.classifier(first)  # [B, 1]
        return logits[:, 0].float()

    def _padded(self, pairs: Sequence[ClassifierPair]) -> torch.Tensor:
        """Scores batches of pairs of equal or similar length, for models that need rectangular input."""
        lengths = [pair.num_tokens for pair in pairs]
        limits = _ON_CPU if self.device.type == "cpu" else _ON_GPU
        batches = list(length_sorted_batches(lengths, *limits))
        logits = torch.cat([self._rectangle([pairs[index] for index in batch]) for batch in batches])
        places = np.argsort(np.concatenate(batches))  # the place of each pair in `logits`
        return logits[to_device([places], self.device)[0]]

    def _rectangle(self, pairs: Sequence[ClassifierPair]) -> torch.Tensor:
        shape = (len(pairs), max(pair.num_tokens for pair in pairs))
        token_ids = np.full(shape, self._pad_id, dtype=np.int64)
        type_ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, pair in enumerate(pairs):
            token_ids[row, : pair.num_tokens] = pair.token_ids
            type_ids[row, : pair.num_tokens] = pair.type_ids
            mask[row, : pair.num_tokens] = 1
        inputs = {"input_ids": token_ids}
        if not (self._masks_on_device and mask.all()):  # without a mask, torch may choose a faster kernel
            inputs["attention_mask"] = mask
        if self._has_type_ids:
            inputs["token_type_ids"] = type_ids
        flat = to_device([array.ravel() for array in inputs.values()], self.device)
        tensors = {name: tensor.view(shape) for name, tensor in zip(inputs, flat, strict=True)}
        logits: torch.Tensor = self._model(**tensors).logits  # [B, 1]
        return logits[:, 0].float()
