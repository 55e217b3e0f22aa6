"""NVIDIA's rerankers: Llama and Mistral with full attention, a pooled vector and a linear score.

Source: the published modelling code of `llama_bidirec` and arXiv 2409.07691 (NV-RerankQA-Mistral4B-v3).
Runs transformers' own Llama and Mistral with `is_causal = False`; no remote code. The stock
`...ForSequenceClassification.forward` is not used: it pools the last token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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

from rerank_service.config import EngineConfig, Pooling
from rerank_service.engine import loading
from rerank_service.engine.device.forward import PACKED_ATTENTION
from rerank_service.engine.device.graphs import StatesOf, states_on
from rerank_service.engine.device.launch import TorchEngine
from rerank_service.engine.device.pack import pack
from rerank_service.engine.device.pool import pool
from rerank_service.engine.device.precision import Precision, resolve_precision
from rerank_service.engine.linear.choose import prepare_linears
from rerank_service.engine.protocol import EncodedPair, TokenSpan, Truncate
from rerank_service.engine.text import tokenise
from rerank_service.errors import CheckpointError

__all__ = ["DECODER_FAMILIES", "BidirectionalDecoderEngine", "load_bidirectional_decoder"]


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


class _Family(NamedTuple):
    config_class: type[PreTrainedConfig]
    model_class: Any


_LLAMA = _Family(LlamaConfig, _BidirectionalLlama)
_MISTRAL = _Family(MistralConfig, _BidirectionalMistral)
DECODER_FAMILIES = {
    "llama_bidirec": _LLAMA,
    "llama": _LLAMA,
    "mistral_bidirec": _MISTRAL,
    "mistral": _MISTRAL,
}
"""`model_type` of config.json to the native classes."""


class BidirectionalDecoderEngine(TorchEngine[EncodedPair]):
    """One templated string a pair, packed forward, pooled and scored in float32."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        states: StatesOf,
        precision: Precision,
        bos_id: int,
        prompt_template: str,
        pooling: Pooling,
        temperature: float,
        window_tokens: int,
    ) -> None:
        super().__init__(model.device)
        self.window_tokens = window_tokens
        self.pooling = pooling
        self.temperature = temperature
        self._template = tokenise.prompt_text(tokenizer, tokenise.checked_template(prompt_template))
        self._precision = precision
        self._bos_id = bos_id
        self._tokenizer = tokenizer
        self._states = states
        self._score_weight = model.score.weight[0].float()  # [H]
        self._score_bias = 0.0 if model.score.bias is None else float(model.score.bias)

    @property
    def description(self) -> str:
        return f"bidirectional_decoder on {self.device} in {self._precision}"

    @property
    def precision(self) -> str:
        return self._precision.name

    def token_spans(self, texts: Sequence[str]) -> list[list[TokenSpan]]:
        return tokenise.token_spans(self._tokenizer, texts)

    def passage_room(self, query: str) -> int:
        (empty,) = self.tokenise(query, [""], Truncate.END)
        return self.window_tokens - len(empty.token_ids)

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[EncodedPair]:
        """The whole templated string at once: the Llama-3 split joins `:` with the first word after it.

        Cut on the right, as published: a query that fills the window leaves nothing of the passage.
        """
        whole = self._ids([self._template.format(query=query, passage=passage) for passage in passages])
        lead_ids: list[int] = []
        if any(len(token_ids) > self.window_tokens for token_ids in whole):
            (lead_ids,) = self._ids([tokenise.up_to_passage(self._template, query=query)])
        pairs = []
        for index, passage in enumerate(passages):
            token_ids, is_cut = tokenise.cut_to_window(whole[index], self.window_tokens, truncate, index)
            is_unscored = is_cut and passage != "" and tokenise.leaves_no_passage(token_ids, lead_ids)
            pairs.append(EncodedPair(token_ids, len(token_ids), is_cut, is_passage_cut=is_cut, is_unscored=is_unscored))
        return pairs

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        encodings = tokenise.encode_texts(self._tokenizer, prompts, add_special_tokens=False)
        return [[self._bos_id, *encoding.ids] for encoding in encodings]

    def forward(self, pairs: Sequence[EncodedPair]) -> torch.Tensor:
        """`score(pool(states)) / temperature`, `[B]`."""
        packed = pack([pair.token_ids for pair in pairs], self.device)
        pooled = pool(self._states(packed), packed, self.pooling)
        # Row by row: a matrix product's last bits would depend on how many rows there are.
        logits: torch.Tensor = ((pooled * self._score_weight).sum(-1) + self._score_bias) / self.temperature
        return logits


def load_bidirectional_decoder(
    folder: Path, options: EngineConfig, window_tokens: int | None
) -> BidirectionalDecoderEngine:
    """Reads pooling, temperature, template and window from the checkpoint; `options` override them."""
    raw = loading.read_model_config(folder)
    family = _family(folder, raw)
    device = loading.resolve_device(options.device)
    precision = resolve_precision(options.dtype, device)
    template = options.prompt_template or raw.get("prompt_template") or tokenise.DEFAULT_TEMPLATE
    tokenizer = tokenise.load_tokenizer(folder, options.special_tokens, [template])
    model = loading.load_weights(
        family.model_class,
        folder,
        _native_config(family, raw, loading.has_tensor(folder, "score.bias")),
        precision=precision,
        device=device,
        attention=PACKED_ATTENTION,
    )
    prepare_linears(model.model, precision)
    return BidirectionalDecoderEngine(
        model,
        tokenizer,
        states=states_on(model.model, options),
        precision=precision,
        bos_id=tokenise.bos_token_id(folder, tokenizer, raw),
        prompt_template=template,
        pooling=options.pooling or _published_pooling(folder, raw),
        temperature=options.temperature or float(raw.get("temperature") or 1.0),
        window_tokens=loading.resolve_window(
            window_tokens, tokenise.model_max_length(folder), loading.max_positions(raw)
        ),
    )


def _family(folder: Path, raw: dict[str, Any]) -> _Family:
    try:
        return DECODER_FAMILIES[raw["model_type"]]
    except KeyError:
        raise CheckpointError(
            f"{folder} has model_type {raw.get('model_type')!r}; a bidirectional decoder is one of "
            f"{', '.join(DECODER_FAMILIES)}"
        ) from None


def _native_config(family: _Family, raw: dict[str, Any], has_score_bias: bool) -> PreTrainedConfig:
    config: PreTrainedConfig = loading.native_config(family.config_class, raw)
    config.is_causal = False  # on the configuration, not per call: a call's change would race between threads
    if hasattr(config, "sliding_window"):
        config.sliding_window = None
    config.has_score_bias = has_score_bias
    return config


def _published_pooling(folder: Path, raw: dict[str, Any]) -> Pooling:
    name = raw.get("pooling") or Pooling.AVG
    try:
        return Pooling(name)
    except ValueError:
        raise CheckpointError(f"{folder} asks for pooling {name!r}; known: {', '.join(Pooling)}") from None
