"""Reference run of a checkpoint: transformers' own classes or plain torch, one pair at a time, in float32.

It shares no code with the engines: transformers' tokenizer truncates to the window, transformers' configuration reads
config.json, and attention is the `eager` implementation with full matrices and explicit masks. There is neither packing
nor padding.

A new engine kind needs a reference here: a class with `encode` and `logit`, and an entry in `_REFERENCES`.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from tokenizers import AddedToken
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from rerank_service.config import EngineKind, ModelConfig
from rerank_service.engine.text.published_prompts import choose_prompt
from rerank_service.errors import CheckpointError
from rerank_service.tools.verify.plain_models import PLAIN_CLASSIFIERS, PlainMiniCpm
from rerank_service.tools.verify.quantised import load_any
from rerank_service.tools.verify.whole_prompt import whole_tokens

__all__ = ["Reference", "ReferenceTokens", "load_reference"]

_NVIDIA_TEMPLATE = "question:{query} \n \n passage:{passage}"
"""NVIDIA's template, from the model card of nvidia/llama-nemotron-rerank-1b-v2."""

_NO_LIMIT = 1_000_000
"""Tokenizers without a window report a larger number as their window."""


class ReferenceTokens(NamedTuple):
    """Tokens of a pair, as the model must see them."""

    token_ids: tuple[int, ...]
    """Token ids of the pair, or of the passage alone if query and passage are encoded separately."""
    num_tokens: int
    """Number of tokens of query and passage, including special tokens."""
    is_cut: bool
    """Whether the pair was truncated to the window."""
    inputs: tuple[dict[str, torch.Tensor], ...]
    """Arguments of the model's calls, one call per text; each tensor is `[1, L]`."""


class _Inputs(NamedTuple):
    """A text or a pair of texts, tokenised."""

    tensors: dict[str, torch.Tensor]
    token_ids: tuple[int, ...]
    is_cut: bool

    @property
    def of_pair(self) -> ReferenceTokens:
        """Tokens of a pair whose query and passage are encoded together."""
        return ReferenceTokens(self.token_ids, len(self.token_ids), self.is_cut, (self.tensors,))


class Reference(ABC):
    """A model that runs as its publishers run it."""

    def __init__(
        self,
        folder: Path,
        model: Any,
        settings: ModelConfig,
        window_tokens: int | None = None,
        prompt: Sequence[str] = (),
    ) -> None:
        """`window_tokens` is a window that the checkpoint states outside its tokenizer; a configured window takes
        precedence. `prompt` contains the texts around query and passage."""
        self._model = model
        self._published = _tokenizer(folder)
        """The published tokenizer, which parses special tokens."""
        self._special_names: set[str] = set()
        """Special tokens that are read as characters in texts; empty if texts are parsed for special tokens."""
        self._tokenizer = self._published
        if settings.engine.special_tokens == "text":
            self._tokenizer, self._special_names = _text_tokenizer(folder, prompt)
        self.window_tokens = _window(model, self._published, settings.window_tokens or window_tokens, folder)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())

    @abstractmethod
    def encode(self, query: str, passage: str) -> ReferenceTokens:
        """Tokens of the pair, truncated to the window."""

    @abstractmethod
    def logit(self, tokens: ReferenceTokens) -> float:
        """Logit of a single pair."""

    def _tokens(self, *texts: list[str]) -> _Inputs:
        """Tokens of one text, or of a pair whose longer text is truncated first."""
        encoded = self._tokenizer(
            *texts,  # as lists, because a single empty passage would count as missing
            truncation=True,
            max_length=self.window_tokens,
            return_tensors="pt",
            return_token_type_ids=getattr(self._model.config, "type_vocab_size", 0) > 1,
        )
        tensors = {name: tensor.to(self._model.device) for name, tensor in encoded.items()}
        is_cut = bool(encoded.encodings[0].overflowing)
        return _Inputs(tensors, tuple(encoded["input_ids"][0].tolist()), is_cut)

    def _ids(self, template: str, **texts: str) -> list[int]:
        """Token ids of a part of a prompt. Special tokens are parsed in the template, but not in the texts."""
        if not any(f"{{{name}}}" in template for name in texts):
            return list(self._published(template.format(**texts), add_special_tokens=False)["input_ids"])
        ids: list[int] = []
        for piece in _split_at(self._special_names, template):
            if piece in self._special_names:
                ids.append(self._published.convert_tokens_to_ids(piece))
            else:
                ids += self._tokenizer(piece.format(**texts), add_special_tokens=False)["input_ids"]
        return ids

    def _of_ids(self, token_ids: Sequence[int], is_cut: bool) -> ReferenceTokens:
        inputs = {"input_ids": torch.tensor([token_ids], device=self._model.device)}
        return ReferenceTokens(tuple(token_ids), len(token_ids), is_cut, (inputs,))


class _Prompt(NamedTuple):
    """Template, pooling and temperature of a decoder checkpoint."""

    template: str
    pooling: str
    temperature: float

    @classmethod
    def of(cls, raw: dict[str, Any], model: ModelConfig) -> "_Prompt":
        """Values from the checkpoint's files or, if the files state none, from the configuration.

        The model type `llama_bidirec` is NVIDIA's own: if the files have no template, NVIDIA's template applies.
        """
        options = model.engine
        configured = None if raw["model_type"] == "llama_bidirec" else options.prompt_template
        return cls(
            raw.get("prompt_template") or configured or _NVIDIA_TEMPLATE,
            raw.get("pooling") or options.pooling or "avg",
            float(raw.get("temperature") or options.temperature or 1.0),
        )


class _Decoder(Reference):
    """`score(pool(states)) / temperature` of the whole formatted prompt, with bidirectional attention."""

    def __init__(self, folder: Path, settings: ModelConfig, device: torch.device) -> None:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        is_llama = raw["model_type"].startswith("llama")
        config: Any = (LlamaConfig if is_llama else MistralConfig).from_pretrained(folder)
        config.is_causal = False
        config.num_labels = 1
        config.sliding_window = None
        classes = LlamaForSequenceClassification if is_llama else MistralForSequenceClassification
        model = _load(classes, folder, device, config=config)
        self._prompt = _Prompt.of(raw, settings)
        super().__init__(folder, model, settings, prompt=[self._prompt.template])
        self._score_bias = _score_bias(folder)

    def encode(self, query: str, passage: str) -> ReferenceTokens:
        template = self._prompt.template
        if len(_split_at(self._special_names, template)) == 1:
            return self._tokens([template.format(query=query, passage=passage)]).of_pair
        ids = [*self._published("")["input_ids"], *self._ids(template, query=query, passage=passage)]
        return self._of_ids(ids[: self.window_tokens], len(ids) > self.window_tokens)

    @torch.inference_mode()
    def logit(self, tokens: ReferenceTokens) -> float:
        # The class's own forward pass would read the last token only, as for a causal model.
        states = self._model.model(input_ids=tokens.inputs[0]["input_ids"], use_cache=False).last_hidden_state[0]
        pooled = {
            "avg": states.mean(0),
            "weighted_avg": states.sum(0),  # the published formula is a sum, despite its name
            "cls": states[0],
            "last": states[-1],
        }[self._prompt.pooling]
        return (float(self._model.score(pooled)) + self._score_bias) / self._prompt.temperature


class _Classifier(Reference):
    """A sequence classifier with a single label; the tokenizer joins query and passage."""

    def __init__(self, folder: Path, settings: ModelConfig, device: torch.device) -> None:
        plain = PLAIN_CLASSIFIERS.get(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
        model = plain(folder, device) if plain else _load(AutoModelForSequenceClassification, folder, device)
        super().__init__(folder, model, settings)

    def encode(self, query: str, passage: str) -> ReferenceTokens:
        return self._tokens([query], [passage]).of_pair

    @torch.inference_mode()
    def logit(self, tokens: ReferenceTokens) -> float:
        return float(self._model(**tokens.inputs[0]).logits)


class _YesNoDecoder(Reference):
    """Logit of `yes` minus logit of `no` as the next token. The parts of the prompt are tokenised separately."""

    def __init__(self, folder: Path, settings: ModelConfig, device: torch.device) -> None:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        is_layerwise = raw["architectures"] == ["LayerWiseMiniCPMForCausalLM"]
        is_classifier = raw["architectures"][0].endswith("ForSequenceClassification")
        self._has_row = is_layerwise or is_classifier
        self._prompt = choose_prompt(folder, raw, settings.engine)  # published text, not code of the engine
        if is_layerwise:
            model: Any = PlainMiniCpm(folder, device, settings.engine.num_layers)
        else:
            model = _load(AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM, folder, device)
        super().__init__(folder, model, settings, prompt=self._prompt.parts)
        self._instruction = settings.engine.instruction or self._prompt.instruction

    def encode(self, query: str, passage: str) -> ReferenceTokens:
        instruction = (self._instruction or "").replace("{", "{{").replace("}", "}}")
        templates = [part.replace("{instruction}", instruction) for part in self._prompt.parts]
        if len(templates) == 1 and not templates[0].endswith("{passage}"):
            texts = {"query": query, "passage": passage}
            tokenizers = (self._published, self._tokenizer, self._special_names)
            return self._of_ids(*whole_tokens(*tokenizers, templates[0], texts, self.window_tokens))
        parts = [self._ids(template, query=query, passage=passage) for template in templates]
        is_cut = sum(map(len, parts)) > self.window_tokens
        if is_cut:
            self._cut(parts)
        return self._of_ids([token for part in parts for token in part], is_cut)

    def _cut(self, parts: list[list[int]]) -> None:
        """Truncates the passage's part from the right. A separate query part is first limited to three quarters of the
        tokens that the window leaves to query and passage.

        mxbai_rerank_v2.py and FlagEmbedding's decoder_only/base.py do the same, but truncate queries even if the pair
        fits. Here, a pair that fits is never truncated.
        """
        query, passage = (
            next(place for place, part in enumerate(self._prompt.parts) if slot in part)
            for slot in ("{query}", "{passage}")
        )
        others = sum(len(part) for place, part in enumerate(parts) if place not in (query, passage))
        if query != passage:
            between = sum(map(len, parts[min(query, passage) + 1 : max(query, passage)]))
            parts[query] = parts[query][: (self.window_tokens - others + between) * 3 // 4]
            others += len(parts[query])
        parts[passage] = parts[passage][: self.window_tokens - others]

    @torch.inference_mode()
    def logit(self, tokens: ReferenceTokens) -> float:
        logits = self._model(**tokens.inputs[0], use_cache=False).logits  # [1, 1] or [1, L, V]
        if self._has_row:  # a converted checkpoint has one row: the row of yes minus the row of no
            return float(logits) / self._prompt.temperature
        logit = float(logits[0, -1, self._word(self._prompt.yes_word)])
        if self._prompt.no_word is not None:
            logit -= float(logits[0, -1, self._word(self._prompt.no_word)])
        return logit / self._prompt.temperature

    def _word(self, word: str) -> int:
        return int(self._published(word, add_special_tokens=False)["input_ids"][0])


def _late_interaction(folder: Path, settings: ModelConfig, device: torch.device) -> Reference:
    from rerank_service.tools.verify.late_interaction import LateInteractionReference, attention_of  # imports this file

    model = _load(AutoModel, folder, device, attn_implementation=attention_of(folder))
    return LateInteractionReference(folder, model, settings)


_REFERENCES: dict[EngineKind, Callable[[Path, ModelConfig, torch.device], Reference]] = {
    EngineKind.BIDIRECTIONAL_DECODER: _Decoder,
    EngineKind.SEQUENCE_CLASSIFIER: _Classifier,
    EngineKind.LATE_INTERACTION: _late_interaction,
    EngineKind.YES_NO_DECODER: _YesNoDecoder,
}


def load_reference(kind: EngineKind, folder: Path, settings: ModelConfig, device: torch.device) -> Reference:
    """Loads a whole model in float32. Release the model before loading another. Raises `CheckpointError`."""
    if kind not in _REFERENCES:
        raise CheckpointError(f"the engine {kind.value} has no reference to verify it against")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        return _REFERENCES[kind](folder, settings, device)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"transformers cannot load {folder}: {error}") from error


def _load(model_class: Any, folder: Path, device: torch.device, **settings: Any) -> Any:
    shared = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
    model, report = load_any(model_class, folder, shared | settings)
    # A bare encoder may lack its pooler, whose output is not used; a classifier's has a longer name.
    missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
    if missing:
        raise CheckpointError(f"{folder} lacks tensors: {', '.join(sorted(missing)[:3])}")
    return model.to(device).eval()


def _tokenizer(folder: Path, **settings: Any) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, **settings)


def _text_tokenizer(folder: Path, prompt: Sequence[str]) -> tuple[Any, set[str]]:
    """A tokenizer that never produces special tokens from a text, and the names of these tokens.

    It extends transformers' `split_special_tokens`: tags in the prompt count as special tokens, and, as in
    sentencepiece, the vocabulary does not produce special tokens.
    """
    tokenizer = _tokenizer(folder, split_special_tokens=True)
    backend = tokenizer.backend_tokenizer
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    tags = [name for name in added if name[0] + name[-1] in ("<>", "[]") and any(name in text for text in prompt)]
    tags += [name for name in added if name in prompt]  # such as "[Q] "
    backend.add_special_tokens([AddedToken(name, special=True) for name in tags])
    names = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    model = backend.model
    state = json.loads(model.__getstate__())
    if state["type"] == "Unigram":
        state["vocab"] = [["\0" + piece if piece in names else piece, score] for piece, score in state["vocab"]]
    elif state["type"] == "BPE":
        state["merges"] = [merge for merge in state["merges"] if "".join(merge) not in names]
    model.__setstate__(json.dumps(state).encode())
    backend.model = model
    return tokenizer, names


def _split_at(names: set[str], template: str) -> list[str]:
    """Splits a template at the given names, each of which becomes a separate piece."""
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return [piece for piece in re.split(f"({longest_first})", template) if piece] if names else [template]


def _window(model: Any, tokenizer: Any, configured: int | None, folder: Path) -> int:
    known = [tokenizer.model_max_length] if tokenizer.model_max_length < _NO_LIMIT else []
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None:
        known.append(positions - _first_position(model))
    if configured is None and not known:
        raise CheckpointError(f"{folder} does not state the length of its window; set window_tokens")
    return configured or int(min(known))


def _first_position(model: Any) -> int:
    """Position of the first token. RoBERTa's position table begins with the rows up to the padding index."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def _score_bias(folder: Path) -> float:
    """Bias of the score head, which transformers' classes do not support; 0 if there is none."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            if "score.bias" in tensors.keys():  # noqa: SIM118 - not a dict
                return float(tensors.get_tensor("score.bias"))
    return 0.0
