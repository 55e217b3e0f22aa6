"""Causal language models that answer yes or no about a pair: Qwen3-Reranker and its like.

The logit of a pair is how far the logit of "yes" is above that of "no" at the prompt's last token,
`(W_yes - W_no) . state`: of the vocabulary two rows are read, and their difference is kept. Its sigmoid is the
softmax over the two words that the models' cards publish as the score. Checkpoints that were converted to a sequence
classifier hold that difference as `score.weight`. Runs transformers' own classes; no remote code.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GemmaModel, LlamaModel, MistralModel, PreTrainedConfig, Qwen2Model, Qwen3Model

from rerank_service.config import EngineConfig, YesNoPrompt
from rerank_service.engine import loading
from rerank_service.engine.device.forward import PACKED_CAUSAL_ATTENTION
from rerank_service.engine.device.graphs import StatesOf, states_on
from rerank_service.engine.device.launch import TorchEngine
from rerank_service.engine.device.pack import pack
from rerank_service.engine.device.precision import Precision, resolve_precision
from rerank_service.engine.linear.choose import prepare_linears
from rerank_service.engine.protocol import EncodedPair, TokenSpan, Truncate
from rerank_service.engine.text import tokenise
from rerank_service.engine.text.prompt_parts import PromptParts
from rerank_service.engine.text.prompts import YES_NO_PROMPTS
from rerank_service.errors import CheckpointError

__all__ = ["CAUSAL_FAMILIES", "YesNoDecoderEngine", "load_yes_no_decoder"]

CAUSAL_FAMILIES: dict[str, Any] = {
    "qwen3": Qwen3Model,
    "qwen2": Qwen2Model,
    "gemma": GemmaModel,
    "llama": LlamaModel,
    "mistral": MistralModel,
}
"""`model_type` to the class of its layers. All attend with nothing but a scale: no cap, no sinks, no biases."""

_CLASSIFIER_ROW = "score.weight"
_VOCABULARY_ROWS = "lm_head.weight"
_TIED_ROWS = "model.embed_tokens.weight"


class YesNoDecoderEngine(TorchEngine[EncodedPair]):
    """One prompt a pair, packed causal forward, the last token's state against one vector in float32."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        states: StatesOf,
        precision: Precision,
        parts: PromptParts,
        direction: torch.Tensor,
        window_tokens: int,
    ) -> None:
        super().__init__(model.device)
        self.window_tokens = window_tokens
        self._precision = precision
        self._tokenizer = tokenizer
        self._states = states
        self._parts = parts
        self._direction = direction.to(model.device)  # [H] float32

    @property
    def description(self) -> str:
        return f"yes_no_decoder on {self.device} in {self._precision}"

    @property
    def precision(self) -> str:
        return self._precision.name

    def token_spans(self, texts: Sequence[str]) -> list[list[TokenSpan]]:
        return tokenise.token_spans(self._tokenizer, texts)

    def passage_room(self, query: str) -> int:
        return self._parts.passage_room(query)

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[EncodedPair]:
        return self._parts.encode(query, passages, truncate)

    def forward(self, pairs: Sequence[EncodedPair]) -> torch.Tensor:
        """`(W_yes - W_no) . state` of each prompt's last token, `[B]`."""
        packed = pack([pair.token_ids for pair in pairs], self.device)
        last = self._states(packed)[packed.cu_seqlens[1:] - 1].float()  # [B, H]
        # Row by row: a matrix product's last bits would depend on how many rows there are.
        return (last * self._direction).sum(-1)


def load_yes_no_decoder(folder: Path, options: EngineConfig, window_tokens: int | None) -> YesNoDecoderEngine:
    """Reads everything but the prompt from the checkpoint; `options` override the published prompt."""
    raw = loading.read_model_config(folder)
    model_class, prompt = _model_class(folder, raw), _prompt(folder, raw, options)
    config = loading.native_config(model_class.config_class, raw)
    device = loading.resolve_device(options.device)
    precision = resolve_precision(options.dtype, device)
    tokenizer = tokenise.load_tokenizer(folder, options.special_tokens, prompt.parts)
    window = loading.resolve_window(window_tokens, tokenise.model_max_length(folder), loading.max_positions(raw))
    _refuse_sliding_attention(config, window)
    parts = PromptParts(tokenizer, prompt, options.instruction, window)
    model = loading.load_weights(
        model_class,
        folder,
        config,
        precision=precision,
        device=device,
        attention=PACKED_CAUSAL_ATTENTION,
        ignored_prefixes=(_VOCABULARY_ROWS, _CLASSIFIER_ROW),  # read on their own, below
    )
    prepare_linears(model, precision)
    return YesNoDecoderEngine(
        model,
        tokenizer,
        states=states_on(model, options),
        precision=precision,
        parts=parts,
        direction=_direction(folder, config, tokenizer, prompt),
        window_tokens=window,
    )


def _model_class(folder: Path, raw: dict[str, Any]) -> Any:
    try:
        return CAUSAL_FAMILIES[raw["model_type"]]
    except KeyError:
        raise CheckpointError(
            f"{folder} has model_type {raw.get('model_type')!r}; a yes/no decoder is one of "
            f"{', '.join(CAUSAL_FAMILIES)}"
        ) from None


def _prompt(folder: Path, raw: dict[str, Any], options: EngineConfig) -> YesNoPrompt:
    prompt = options.yes_no or YES_NO_PROMPTS.get(raw["model_type"])
    if prompt is None:
        raise CheckpointError(
            f"{folder} is a language model of the family {raw['model_type']!r}, for which no reranking prompt is known "
            f"(there is one for {', '.join(YES_NO_PROMPTS)}): give the one it was trained with as engine.yes_no"
        )
    return prompt


def _refuse_sliding_attention(config: PreTrainedConfig, window_tokens: int) -> None:
    reach = getattr(config, "sliding_window", None)
    if reach is not None and window_tokens > reach:
        raise CheckpointError(
            f"this model's tokens see {reach} tokens back, which packed attention does not do: set window_tokens to at "
            f"most {reach}, where it makes no difference"
        )


def _direction(folder: Path, config: PreTrainedConfig, tokenizer: Any, prompt: YesNoPrompt) -> torch.Tensor:
    """What a state is multiplied with, `[H]` float32."""
    if loading.has_tensor(folder, _CLASSIFIER_ROW):
        rows = loading.read_rows(folder, _CLASSIFIER_ROW)
        if len(rows) != 1:
            raise CheckpointError(f"{folder} has {len(rows)} labels; a reranker has one")
        return rows[0]
    name = _VOCABULARY_ROWS if loading.has_tensor(folder, _VOCABULARY_ROWS) else _TIED_ROWS
    if name == _TIED_ROWS and not config.tie_word_embeddings:
        raise CheckpointError(f"{folder} has neither {_VOCABULARY_ROWS} nor {_CLASSIFIER_ROW}, nor are they tied")
    yes = loading.read_rows(folder, name, _token_id(tokenizer, prompt.yes_word))[0]
    return (
        yes
        if prompt.no_word is None
        else yes - loading.read_rows(folder, name, _token_id(tokenizer, prompt.no_word))[0]
    )


def _token_id(tokenizer: Any, word: str) -> int:
    ids: list[int] = tokenizer.encode(tokenise.prompt_text(tokenizer, word), add_special_tokens=False).ids
    if len(ids) != 1:
        raise CheckpointError(f"the answer {word!r} is {len(ids)} tokens of this tokenizer, not one: see engine.yes_no")
    return ids[0]
