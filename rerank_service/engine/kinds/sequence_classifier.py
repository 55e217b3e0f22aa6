"""Ordinary cross-encoders with one label: BERT, XLM-RoBERTa, ModernBERT, DeBERTa and their like.

transformers' own classes with their own heads, the pair encoded by the tokenizer. BERT and (XLM-)RoBERTa run
packed; other families get a rectangular batch of pairs of equal length (on a GPU, of similar length).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rerank_service.config import EngineConfig
from rerank_service.engine import loading
from rerank_service.engine.device.forward import PACKED_ATTENTION
from rerank_service.engine.device.graphs import StatesOf, states_on
from rerank_service.engine.device.launch import TorchEngine
from rerank_service.engine.device.pack import length_sorted_batches, pack
from rerank_service.engine.device.precision import Precision, resolve_precision
from rerank_service.engine.linear.calibration import calibration_pairs
from rerank_service.engine.linear.choose import prepare_linears
from rerank_service.engine.protocol import EncodedPair, TokenIds, TokenSpan, Truncate
from rerank_service.engine.text import tokenise
from rerank_service.errors import CheckpointError, PairTooLong

__all__ = ["ClassifierPair", "SequenceClassifierEngine", "load_sequence_classifier"]

_PACKED_FAMILIES = ("bert", "roberta", "xlm-roberta")
"""Families (`model_type`) whose head reads the first token and whose attention is full: their pairs can be packed."""

_MAX_PADDED_TOKENS = 16_384
_MAX_PADDING_ON_GPU = 0.10
"""There, small batches cost more than some padding. A CPU is as fast on one pair as on many, so none is padded
and no pair's logit depends on another's length."""


@dataclass(frozen=True, slots=True, eq=False)
class ClassifierPair(EncodedPair):
    """A pair as its tokenizer joins it."""

    type_ids: TokenIds
    """0 for the query's tokens, 1 for the passage's, where the model tells them apart."""


class SequenceClassifierEngine(TorchEngine[ClassifierPair]):
    """A model with one label that reads query and passage together."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        states: StatesOf,
        precision: Precision,
        window_tokens: int,
        pad_id: int,
        first_position: int,
    ) -> None:
        super().__init__(model.device)
        self.window_tokens = window_tokens
        self._precision = precision
        self._tokenizer = tokenizer
        self._model = model
        self._pad_id = pad_id
        self._is_packed = model.config.model_type in _PACKED_FAMILIES
        self._states = states
        self._first_position = first_position
        self._has_type_ids = getattr(model.config, "type_vocab_size", 0) > 1
        self._max_padding = 0.0 if self.device.type == "cpu" else _MAX_PADDING_ON_GPU

    @property
    def description(self) -> str:
        return f"sequence_classifier on {self.device} in {self._precision}"

    @property
    def precision(self) -> str:
        return self._precision.name

    def token_spans(self, texts: Sequence[str]) -> list[list[TokenSpan]]:
        return tokenise.token_spans(self._tokenizer, texts)

    def passage_room(self, query: str) -> int:
        """At least half of what the special tokens leave: a longer query is cut for a long passage."""
        (encoding,) = tokenise.encode_texts(self._tokenizer, [(query, "")], add_special_tokens=True)
        room = self.window_tokens - encoding.sequence_ids.count(None)
        return max(room - encoding.sequence_ids.count(0), room // 2)

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[ClassifierPair]:
        encodings = tokenise.encode_texts(
            self._tokenizer, [(query, passage) for passage in passages], add_special_tokens=True
        )
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
        """The model's one label, `[B]`."""
        return self._packed(pairs) if self._is_packed else self._padded(pairs)

    def _packed(self, pairs: Sequence[ClassifierPair]) -> torch.Tensor:
        """All pairs end to end; the head sees the first token of each as a batch of its own."""
        packed = pack(
            [pair.token_ids for pair in pairs],
            self.device,
            type_ids=[pair.type_ids for pair in pairs] if self._has_type_ids else None,
            first_position=self._first_position,
        )
        states = self._states(packed)  # [T, H]
        first = states[packed.cu_seqlens[:-1]][:, None]  # [B, 1, H]
        if self._model.config.model_type == "bert":
            first = self._model.bert.pooler(first)  # [B, H]
        logits: torch.Tensor = self._model.classifier(first)  # [B, 1]
        return logits[:, 0].float()

    def _padded(self, pairs: Sequence[ClassifierPair]) -> torch.Tensor:
        """Pairs of equal or similar length together, for heads that want a rectangle."""
        logits = torch.empty(len(pairs), device=self.device)
        lengths = [pair.num_tokens for pair in pairs]
        for batch in length_sorted_batches(lengths, _MAX_PADDED_TOKENS, self._max_padding):
            logits[batch] = self._rectangle([pairs[index] for index in batch])
        return logits

    def _rectangle(self, pairs: Sequence[ClassifierPair]) -> torch.Tensor:
        shape = (len(pairs), max(pair.num_tokens for pair in pairs))
        token_ids = np.full(shape, self._pad_id, dtype=np.int64)
        type_ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, pair in enumerate(pairs):
            token_ids[row, : pair.num_tokens] = pair.token_ids
            type_ids[row, : pair.num_tokens] = pair.type_ids
            mask[row, : pair.num_tokens] = 1
        inputs = {"input_ids": token_ids, "attention_mask": mask}
        if self._has_type_ids:
            inputs["token_type_ids"] = type_ids
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
        logits: torch.Tensor = self._model(**tensors).logits  # [B, 1]
        return logits[:, 0].float()


def load_sequence_classifier(
    folder: Path, options: EngineConfig, window_tokens: int | None
) -> SequenceClassifierEngine:
    """Any architecture that transformers itself can classify with; refuses more than one label."""
    raw = loading.read_model_config(folder)
    device = loading.resolve_device(options.device)
    precision = resolve_precision(options.dtype, device)
    tokenizer = tokenise.load_tokenizer(folder, options.special_tokens)
    config = _one_label_config(folder)
    model = loading.load_weights(
        AutoModelForSequenceClassification,
        folder,
        config,
        precision=precision,
        device=device,
        attention=PACKED_ATTENTION if config.model_type in _PACKED_FAMILIES else None,
    )
    engine = SequenceClassifierEngine(
        model,
        tokenizer,
        states=states_on(model.base_model, options),
        precision=precision,
        window_tokens=loading.resolve_window(
            window_tokens, tokenise.model_max_length(folder), loading.max_positions(raw)
        ),
        pad_id=int(config.pad_token_id or 0),
        first_position=loading.first_position(raw),
    )
    prepare_linears(model, precision, lambda: engine.score(calibration_pairs(engine.tokenise)))
    return engine


def _one_label_config(folder: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"transformers has no classifier for {folder} ({error}). Code that ships with a checkpoint is never run"
        ) from error
    if config.num_labels != 1:
        raise CheckpointError(f"{folder} has {config.num_labels} labels; a reranker has one")
    return config
