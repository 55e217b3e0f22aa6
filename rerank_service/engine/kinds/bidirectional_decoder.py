"""Engine for NVIDIA's rerankers: Llama and Mistral with full attention, pooling and a linear score.

Source: the published modelling code of `llama_bidirec` and arXiv 2409.07691 (NV-RerankQA-Mistral4B-v3). This engine
runs transformers' own Llama and Mistral with `is_causal = False` and runs no remote code. It does not use transformers'
`...ForSequenceClassification`, which pools the last token.
"""

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaModel,
    LlamaPreTrainedModel,
    MistralConfig,
    MistralModel,
    MistralPreTrainedModel,
    PreTrainedConfig,
)

from rerank_service.config import EngineConfig, EngineKind, Pooling
from rerank_service.engine import loading
from rerank_service.engine.device.forward import PACKED_ATTENTION
from rerank_service.engine.device.graphs import states_on
from rerank_service.engine.device.pack import pack, pool
from rerank_service.engine.kinds.checkpoint_engine import CheckpointEngine
from rerank_service.engine.linear.prepare import prepare_linears
from rerank_service.engine.loading import Checkpoint
from rerank_service.engine.protocol import EncodedPair, Truncate
from rerank_service.engine.text import tokenise
from rerank_service.errors import CheckpointError, PairTooLong

__all__ = ["DECODER_FAMILIES", "BidirectionalDecoderEngine"]

_DEFAULT_TEMPLATE = "question:{query} \n \n passage:{passage}"
"""The published prompt of NVIDIA's rerankers."""


class _BidirectionalLlama(LlamaPreTrainedModel):
    """The tensors of `LlamaBidirectionalForSequenceClassification`: `model.*` and `score.*`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = torch.nn.Linear(config.hidden_size, 1, bias=config.has_score_bias)
        self.post_init()


class _BidirectionalMistral(MistralPreTrainedModel):
    """The tensors of `MistralForSequenceClassification`, with or without `score.bias`."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.model = MistralModel(config)
        self.score = torch.nn.Linear(config.hidden_size, 1, bias=config.has_score_bias)
        self.post_init()


DECODER_FAMILIES: dict[str, Any] = {
    "llama_bidirec": _BidirectionalLlama,
    "llama": _BidirectionalLlama,
    "mistral_bidirec": _BidirectionalMistral,
    "mistral": _BidirectionalMistral,
}
"""Class for each `model_type` of config.json."""


class BidirectionalDecoderEngine(CheckpointEngine[EncodedPair]):
    """Tokenises one templated string per pair, runs a packed forward pass, and pools and scores in float32."""

    kind = EngineKind.BIDIRECTIONAL_DECODER

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Uses pooling, temperature and template from the options, or else from config.json."""
        folder, raw, options = checkpoint.folder, checkpoint.raw, checkpoint.options
        model_class = loading.class_of_family(checkpoint, DECODER_FAMILIES, "bidirectional decoder")
        template = tokenise.checked_template(options.prompt_template or raw.get("prompt_template") or _DEFAULT_TEMPLATE)
        super().__init__(checkpoint, prompt=[template])
        self._template = tokenise.prompt_text(self._tokenizer, template)
        self._bos_id = tokenise.bos_token_id(folder, self._tokenizer, raw)
        self._pooling = options.pooling or _published_pooling(folder, raw)
        self.assumptions = _assumptions(raw, options)
        self._temperature = options.temperature or float(raw.get("temperature") or 1.0)

        config: PreTrainedConfig = loading.native_config(model_class.config_class, raw)
        config.is_causal = False  # set once, because setting it in each call would cause races between threads
        if hasattr(config, "sliding_window"):
            config.sliding_window = None
        config.has_score_bias = loading.has_tensor(folder, "score.bias")
        model = self._load_weights(model_class, config, attention=PACKED_ATTENTION)
        self.backbone = model.model
        self._states = states_on(self.backbone, options)
        prepare_linears(self.backbone, self._precision)
        self._score_weight = model.score.weight[0].float()  # [H]
        self._score_bias = 0.0 if model.score.bias is None else float(model.score.bias)

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[EncodedPair]:
        """See `Engine`. Cuts pairs at the end, as NVIDIA does: if the query fills the window, no passage remains."""
        # Encodes each string as a whole, because Llama 3's tokenizer joins the prompt's `:` with the word after it.
        texts = [self._template.format(query=query, passage=passage) for passage in passages]
        pairs, lead_ids = [], None
        for index, encoding in enumerate(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)):
            token_ids = [self._bos_id, *encoding.ids]
            is_cut = len(token_ids) > self.window_tokens
            is_unscored = False
            if is_cut:
                if truncate is Truncate.NONE:
                    raise PairTooLong(index, len(token_ids), self.window_tokens)
                token_ids = token_ids[: self.window_tokens]
                lead_ids = lead_ids or self._lead_ids(query)
                is_unscored = passages[index] != "" and tokenise.leaves_no_passage(token_ids, lead_ids)
            kept = np.asarray(token_ids, np.int32)
            pairs.append(EncodedPair(kept, len(kept), is_cut, is_passage_cut=is_cut, is_unscored=is_unscored))
        return pairs

    def _lead_ids(self, query: str) -> list[int]:
        """Token ids of the prompt before the passage."""
        lead = self._tokenizer.encode(tokenise.up_to_passage(self._template, query=query), add_special_tokens=False)
        return [self._bos_id, *lead.ids]

    def forward(self, pairs: Sequence[EncodedPair]) -> torch.Tensor:
        """`score(pool(states)) / temperature`: float32 logits `[B]`."""
        packed = pack(list(map(attrgetter("token_ids"), pairs)), self.device, shape=self.fixed_shape)
        pooled = pool(self._states(packed), packed, self._pooling)
        # Row by row, because the last bits of a matrix product would depend on the number of rows.
        logits: torch.Tensor = ((pooled * self._score_weight).sum(-1) + self._score_bias) / self._temperature
        return logits


def _assumptions(raw: dict[str, Any], options: EngineConfig) -> tuple[str, ...]:
    """What the engine takes from NVIDIA's 1B because neither config.json nor the options state it. Files of the 1B's
    own type, `llama_bidirec`, imply the published template and the direction of attention."""
    is_own_type = str(raw.get("model_type")).endswith("_bidirec")
    found = {
        "the direction of attention": is_own_type,
        "the prompt template": is_own_type or raw.get("prompt_template") or options.prompt_template,
        "the pooling": raw.get("pooling") or options.pooling,
    }
    return tuple(name for name, value in found.items() if not value)


def _published_pooling(folder: Path, raw: dict[str, Any]) -> Pooling:
    name = raw.get("pooling") or Pooling.AVG
    try:
        return Pooling(name)
    except ValueError:
        raise CheckpointError(
            f"{folder} asks for pooling {name!r}, which is unknown; set engine.pooling to one of {', '.join(Pooling)}"
        ) from None
