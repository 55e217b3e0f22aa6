"""Engine for causal language models that answer yes or no about a pair, such as Qwen3-Reranker.

A pair's logit is the logit of "yes" minus the logit of "no" at the prompt's last token, `(W_yes - W_no) . state`. Only
the rows `W_yes` and `W_no` of the vocabulary matrix are read, and only their difference is kept. The sigmoid of a
pair's logit equals the softmax over the two words, which the model cards publish as the score. Checkpoints converted to
a sequence classifier store the difference of the rows as `score.weight`, and layer-wise decoders have a head. Runs
transformers' own classes and no remote code.
"""

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from transformers import GemmaModel, GraniteModel, LlamaModel, MistralModel, PreTrainedConfig, Qwen2Model, Qwen3Model

from rerank_service.config import EngineKind, YesNoPrompt
from rerank_service.engine import loading
from rerank_service.engine.device.forward import PACKED_CAUSAL_ATTENTION
from rerank_service.engine.device.graphs import states_on
from rerank_service.engine.device.pack import pack
from rerank_service.engine.kinds.checkpoint_engine import CheckpointEngine
from rerank_service.engine.kinds.layerwise import layers_to_run
from rerank_service.engine.linear.prepare import prepare_linears
from rerank_service.engine.loading import Checkpoint
from rerank_service.engine.protocol import EncodedPair, Truncate
from rerank_service.engine.text import tokenise
from rerank_service.engine.text.published_prompts import choose_prompt
from rerank_service.engine.text.whole_prompt import WholePrompt, is_whole
from rerank_service.engine.text.yes_no_prompts import PromptParts
from rerank_service.errors import CheckpointError

__all__ = ["CAUSAL_FAMILIES", "YesNoDecoderEngine"]

CAUSAL_FAMILIES: dict[str, Any] = {
    "qwen3": Qwen3Model,
    "qwen2": Qwen2Model,
    "gemma": GemmaModel,
    "llama": LlamaModel,
    "mistral": MistralModel,
    "minicpm": GraniteModel,
}
"""transformers' class for each `model_type`. All use plain scaled attention, without a soft cap, sink or bias."""

_CLASSIFIER_ROW = "score.weight"
_VOCABULARY_ROWS = "lm_head.weight"
_TIED_ROWS = "model.embed_tokens.weight"


class YesNoDecoderEngine(CheckpointEngine[EncodedPair]):
    """Encodes one prompt per pair, runs a packed causal pass, and multiplies the last state by a float32 vector."""

    kind = EngineKind.YES_NO_DECODER

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Uses the prompt of `choose_prompt`."""
        folder, raw, options = checkpoint.folder, checkpoint.raw, checkpoint.options
        model_class = loading.class_of_family(checkpoint, CAUSAL_FAMILIES, "yes/no decoder")
        prompt = choose_prompt(folder, raw, options)
        super().__init__(checkpoint, prompt.parts)
        layers = layers_to_run(checkpoint)
        config: Any = layers.config if layers else loading.native_config(model_class.config_class, raw)
        reach = getattr(config, "sliding_window", None)
        if reach is not None and self.window_tokens > reach:
            raise CheckpointError(
                f"this model has sliding-window attention over {reach} tokens, which packed attention does not "
                f"support: set window_tokens to at most {reach}, where sliding has no effect"
            )
        prompt_class = WholePrompt if is_whole(prompt) else PromptParts
        self._prompt = prompt_class(self._tokenizer, prompt, options.instruction, self.window_tokens)
        self.unused_prefixes = layers.unused_prefixes if layers else (_VOCABULARY_ROWS, _CLASSIFIER_ROW)
        self.backbone = self._load_weights(
            model_class,
            config,
            attention=PACKED_CAUSAL_ATTENTION,
            ignored_prefixes=self.unused_prefixes,  # with the rows that are read below
        )
        self._states = states_on(self.backbone, options)
        prepare_linears(self.backbone, self._precision)
        read = (
            loading.read_rows(folder, layers.head)[0] if layers else _direction(folder, config, self._tokenizer, prompt)
        )
        self._direction = read.to(self.device)  # [H] float32

    def passage_room(self, query: str) -> int:
        """See `Engine`."""
        return self._prompt.passage_room(query)

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[EncodedPair]:
        """See `Engine`, `PromptParts.encode` and `WholePrompt.encode`."""
        return self._prompt.encode(query, passages, truncate)

    def forward(self, pairs: Sequence[EncodedPair]) -> torch.Tensor:
        """`(W_yes - W_no) . state` of each prompt's last token: float32 logits `[B]`."""
        packed = pack(list(map(attrgetter("token_ids"), pairs)), self.device, shape=self.fixed_shape)
        last = self._states(packed)[packed.cu_seqlens[1:] - 1].float()  # [B, H]
        # Row by row, because the last bits of a matrix product would depend on the number of rows.
        return (last * self._direction).sum(-1)


def _direction(folder: Path, config: PreTrainedConfig, tokenizer: Any, prompt: YesNoPrompt) -> torch.Tensor:
    """The float32 vector `[H]` whose product with a prompt's last state is the logit."""
    if loading.has_tensor(folder, _CLASSIFIER_ROW):
        rows = loading.read_rows(folder, _CLASSIFIER_ROW)
        if len(rows) != 1:
            raise CheckpointError(f"{folder} has {len(rows)} labels; a reranker has only one")
        return rows[0] / prompt.temperature
    name = _VOCABULARY_ROWS if loading.has_tensor(folder, _VOCABULARY_ROWS) else _TIED_ROWS
    if name == _TIED_ROWS and not config.tie_word_embeddings:
        raise CheckpointError(
            f"{folder} has neither {_VOCABULARY_ROWS} nor {_CLASSIFIER_ROW}, and its embeddings are not tied: "
            "check that the checkpoint is complete"
        )
    direction = loading.read_rows(folder, name, _token_id(tokenizer, prompt.yes_word))[0]
    if prompt.no_word is not None:
        direction = direction - loading.read_rows(folder, name, _token_id(tokenizer, prompt.no_word))[0]
    return direction / prompt.temperature


def _token_id(tokenizer: Any, word: str) -> int:
    ids: list[int] = tokenizer.encode(tokenise.prompt_text(tokenizer, word), add_special_tokens=False).ids
    if len(ids) != 1:
        raise CheckpointError(
            f"the answer {word!r} must be one token, but is {len(ids)} tokens in this tokenizer: "
            "set a shorter answer in engine.yes_no"
        )
    return ids[0]
