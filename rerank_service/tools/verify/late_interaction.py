"""Reference run of late interaction: query and passage encoded separately by transformers, and then compared."""

import json
from pathlib import Path
from typing import Any

import torch

from rerank_service.config import LateInteractionHead, ModelConfig
from rerank_service.tools.verify.colbert_reference import ColbertFiles
from rerank_service.tools.verify.reference import Reference, ReferenceTokens

__all__ = ["LateInteractionReference", "attention_of"]

_SUM_OF_MAXIMA = LateInteractionHead(cosine_weight=0.0, maxsim_weight=1.0, maxsim_is_sum=True, bias=0.0)


class LateInteractionReference(Reference):
    """`a * cosine + b * maxsim + c` of two texts encoded separately. The score of a ColBERT checkpoint is MaxSim alone,
    as a sum; the configuration may set other weights."""

    def __init__(self, folder: Path, model: Any, settings: ModelConfig) -> None:
        self._colbert = ColbertFiles.of(folder)
        self._query_tokens = settings.engine.query_tokens
        if self._colbert is None:
            super().__init__(folder, model, settings, _window(folder))
            self._head = settings.engine.head or LateInteractionHead()
            return
        positions = getattr(model.config, "max_position_embeddings", None)
        window = min(filter(None, [self._colbert.lengths["document"], positions]))
        super().__init__(folder, model, settings, window, list(self._colbert.prefixes.values()))
        self._head = settings.engine.head or _SUM_OF_MAXIMA

    def encode(self, query: str, passage: str) -> ReferenceTokens:
        if self._colbert is None:
            plain = self._tokens([query]), self._tokens([passage])
            texts = [(one.token_ids, one.tensors, one.is_cut) for one in plain]
        else:
            length = self._query_tokens or self._colbert.lengths["query"]
            tokenizers = self._tokenizer, self._published
            texts = [
                self._colbert.encode(*tokenizers, query, "query", length),
                self._colbert.encode(*tokenizers, passage, "document", self.window_tokens),
            ]
        num_tokens, is_cut = sum(len(ids) for ids, _, _ in texts), any(is_cut for _, _, is_cut in texts)
        return ReferenceTokens(texts[1][0], num_tokens, is_cut, tuple(inputs for _, inputs, _ in texts))

    @torch.inference_mode()
    def logit(self, tokens: ReferenceTokens) -> float:
        on_device = [{name: one.to(self._model.device) for name, one in inputs.items()} for inputs in tokens.inputs]
        query, passage = (self._model(**inputs).last_hidden_state[0] for inputs in on_device)  # [L, H]
        if self._colbert is not None:
            best = self._colbert.best_matches(self._published, query, passage, tokens.token_ids)
        else:
            words = query[1:-1] if len(query) > 2 else query  # without [CLS] and [SEP]
            best = torch.cosine_similarity(words[:, None], passage[None], dim=-1).max(1).values  # [Nq]
        maxsim = best.sum() if self._head.maxsim_is_sum else best.mean()
        cosine = torch.cosine_similarity(query.mean(0), passage.mean(0), dim=0)
        return float(self._head.cosine_weight * cosine + self._head.maxsim_weight * maxsim + self._head.bias)


def attention_of(folder: Path) -> str:
    """The attention of the reference: of a ColBERT model, the one that pylate uses, in which a mask token that sees no
    token gets zeros; `eager` would give it the mean of all tokens."""
    return "eager" if ColbertFiles.of(folder) is None else "sdpa"


def _window(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("max_seq_length") if path.is_file() else None
