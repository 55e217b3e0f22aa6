"""Reads from a checkpoint's files how its late interaction works: pylate's format, Stanford's, or a sentence encoder.

Sources: `pylate.models.ColBERT` 1.6.0 (defaults, order of steps) and stanford-futuredata/ColBERT (artifact.metadata).
Only JSON is read here; `token_vectors` reads the projections.
"""

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_service.config import LateInteractionHead
from rerank_service.engine import loading
from rerank_service.errors import CheckpointError

__all__ = ["STANFORD", "LateInteractionFormat", "SideFormat", "read_format"]

STANFORD = "HF_ColBERT"
"""The architecture that Stanford's checkpoints name in config.json."""

_PYLATE_SETTINGS = ("query_prefix", "document_prefix", "query_length", "document_length", "do_query_expansion")
_PYLATE_MODULES = ("Transformer", "Dense", "Pooling", "Normalize", "Dropout")
"""Modules by the last part of their class. The last three change no vector of a token that MaxSim compares."""
_FITTED = LateInteractionHead()
_MAXSIM = LateInteractionHead(cosine_weight=0.0, maxsim_weight=1.0, maxsim_is_sum=True, bias=0.0)
_MODULE_FOLDER = re.compile(r"\w[\w.-]*", re.ASCII)
_SHORTEST = 8
"""Fewest tokens of a text: its special tokens and a few others."""


@dataclass(frozen=True, slots=True)
class SideFormat:
    """How the texts of one side, queries or passages, become tokens."""

    prompt: str = ""
    """Text before each text."""
    prefix: str | None = None
    """Token inserted after the first token; null: none."""
    max_tokens: int | None = None
    """Longest text, special tokens included; null: the model's window."""
    is_expanded: bool = False
    """Whether shorter texts are filled with mask tokens, whose states count."""


@dataclass(frozen=True, slots=True)
class LateInteractionFormat:
    """How a checkpoint encodes and compares texts. The defaults are those of a plain sentence encoder."""

    query: SideFormat = SideFormat()
    passage: SideFormat = SideFormat()
    head: LateInteractionHead = _FITTED
    is_colbert: bool = False
    """Whether all query tokens count in MaxSim, and states are projected. In a sentence encoder, the first and the last
    query token do not count, and states are compared as they are."""
    attends_expansion: bool = False
    """Whether attention sees the mask tokens of an expanded query."""
    skipped_words: tuple[str, ...] = ()
    """Passage tokens that do not count in MaxSim."""
    lowers: bool = False
    """Whether texts are lowered before the tokenizer sees them."""
    projections: tuple[str, ...] = ()
    """Folders of the projections, in their order; empty in Stanford's format, which has one among the weights."""


def read_format(folder: Path, config: Mapping[str, Any]) -> LateInteractionFormat:
    """The format of a checkpoint with this config.json. Raises `CheckpointError` for a setting that no engine has."""
    if STANFORD in (config.get("architectures") or []):
        return _stanford(folder)
    path = folder / "config_sentence_transformers.json"
    settings = loading.read_json(path) if path.is_file() else {}
    modules = _modules(folder)
    types = [kind for kind, _ in modules]
    if settings.get("model_type") == "MultiVectorEncoder" or any("multi_vector" in kind for kind in types):
        raise CheckpointError(
            f"{folder} is in the format of sentence-transformers' MultiVectorEncoder, which no engine reads; save the "
            "model with pylate, or use the publisher's files in pylate's format"
        )
    is_pylate = settings.get("model_type") == "ColBERT" or settings.get("similarity_fn_name") == "MaxSim"
    if is_pylate or any(name in settings for name in _PYLATE_SETTINGS) or any("pylate." in kind for kind in types):
        return _pylate(folder, settings, modules)
    return LateInteractionFormat()


def _pylate(folder: Path, settings: Mapping[str, Any], modules: Sequence[tuple[str, str]]) -> LateInteractionFormat:
    similarity = settings.get("similarity_fn_name") or "MaxSim"
    if similarity != "MaxSim":
        raise CheckpointError(f"{folder} compares tokens by {similarity!r}; only MaxSim is supported")
    if strange := [kind for kind, _ in modules if kind.rpartition(".")[2] not in _PYLATE_MODULES]:
        raise CheckpointError(f"{folder} has modules that no engine computes: {', '.join(strange)}")
    projections = tuple(path for kind, path in modules if kind.endswith(".Dense"))
    if not projections:
        raise CheckpointError(
            f"{folder} has pylate's settings but no Dense module in modules.json: pylate would add one with random "
            "weights. Fetch the whole checkpoint, with its folder 1_Dense"
        )
    read = _Settings(folder / "config_sentence_transformers.json", settings)
    prompts = read.of("prompts", dict, {})
    expands = read.of("do_query_expansion", bool, True)
    return LateInteractionFormat(
        query=SideFormat(
            prompt=str(prompts.get("query") or ""),
            prefix=read.of("query_prefix", str, "[Q] ") or None,
            max_tokens=read.length("query_length", 32),
            is_expanded=expands,
        ),
        passage=SideFormat(
            prompt=str(prompts.get("document") or ""),
            prefix=read.of("document_prefix", str, "[D] ") or None,
            max_tokens=read.length("document_length", 180),
        ),
        head=_MAXSIM,
        is_colbert=True,
        attends_expansion=expands and read.of("attend_to_expansion_tokens", bool, False),
        skipped_words=tuple(map(str, read.of("skiplist_words", list, list(string.punctuation)))),
        lowers=_lowers(folder),
        projections=projections,
    )


def _stanford(folder: Path) -> LateInteractionFormat:
    path = folder / "artifact.metadata"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no artifact.metadata, which states the lengths and markers of its texts")
    settings = loading.read_json(path)
    read = _Settings(path, settings)
    if (similarity := read.of("similarity", str, "cosine")) != "cosine":
        raise CheckpointError(f"{folder} compares tokens by {similarity!r}; only cosine is supported")
    punctuation = tuple(string.punctuation) if read.of("mask_punctuation", bool, True) else ()
    return LateInteractionFormat(
        query=SideFormat(
            prefix=read.of("query_token_id", str, "[unused0]"),
            max_tokens=read.length("query_maxlen", 32),
            is_expanded=True,
        ),
        passage=SideFormat(prefix=read.of("doc_token_id", str, "[unused1]"), max_tokens=read.length("doc_maxlen", 180)),
        head=_MAXSIM,
        is_colbert=True,
        attends_expansion=read.of("attend_to_mask_tokens", bool, False),
        skipped_words=punctuation,
    )


class _Settings:
    """The settings of a file, with the types that they must have."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path = path
        self._values = values

    def of(self, name: str, kind: type, default: Any) -> Any:
        """A value, or the default if the file has none or null. Raises `CheckpointError` for another type."""
        value = self._values.get(name)
        if value is None:
            return default
        if type(value) is not kind:
            raise CheckpointError(f"{self._path} has {name}: {value!r}, which is not of the type {kind.__name__}")
        return value

    def length(self, name: str, default: int) -> int:
        length: int = self.of(name, int, default)
        if length < _SHORTEST:
            raise CheckpointError(f"{self._path} has {name}: {length}; the least is {_SHORTEST} tokens")
        return length


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Type and folder of each module in modules.json. Raises `CheckpointError` if a folder leads elsewhere."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        modules = [(str(one["type"]), str(one["path"])) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} is not a list of modules with a type and a path ({error})") from None
    for _, place in modules:
        if place and not _MODULE_FOLDER.fullmatch(place):
            raise CheckpointError(f"{path} names the folder {place!r}, which is not in the checkpoint")
    return modules


def _lowers(folder: Path) -> bool:
    path = folder / "sentence_bert_config.json"
    return bool(loading.read_json(path).get("do_lower_case")) if path.is_file() else False
