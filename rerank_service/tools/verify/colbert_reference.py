"""How a ColBERT checkpoint encodes and compares texts, read from its files a second time, without the engine's code.

Follows `pylate.models.ColBERT.tokenize` and `encode`, and `pylate.scores.colbert_scores`, one text at a time.
"""

import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

__all__ = ["ColbertFiles"]


class ColbertFiles:
    """Settings and projections of a ColBERT checkpoint."""

    def __init__(self, folder: Path, settings: dict[str, Any], projections: list[list[Any]]) -> None:
        """The settings have pylate's names. Each projection has weight, bias, activation and, for a residual, a matrix
        or the number 1."""
        self.prompts = {side: (settings.get("prompts") or {}).get(side) or "" for side in ("query", "document")}
        self.prefixes = {"query": settings["query_prefix"], "document": settings["document_prefix"]}
        self.lengths = {"query": settings["query_length"], "document": settings["document_length"]}
        self._expands = settings["do_query_expansion"]
        self._attends = settings["attend_to_expansion_tokens"]
        self._skipped = settings["skiplist_words"]
        self._lowers = bool(_read(folder / "sentence_bert_config.json").get("do_lower_case"))
        self._projections = projections

    @classmethod
    def of(cls, folder: Path) -> "ColbertFiles | None":
        """The files of a checkpoint; null if it is a plain sentence encoder."""
        modules = json.loads(_text(folder / "modules.json") or "[]")
        dense = [folder / module["path"] for module in modules if module["type"].endswith(".Dense")]
        given = _read(folder / "config_sentence_transformers.json")
        if "HF_ColBERT" in (_read(folder / "config.json").get("architectures") or []):
            stanford = _read(folder / "artifact.metadata")
            given = {
                "query_prefix": stanford.get("query_token_id", "[unused0]"),
                "document_prefix": stanford.get("doc_token_id", "[unused1]"),
                "query_length": stanford.get("query_maxlen"),
                "document_length": stanford.get("doc_maxlen"),
                "attend_to_expansion_tokens": stanford.get("attend_to_mask_tokens"),
                "skiplist_words": None if stanford.get("mask_punctuation", True) else [],
            }
            tensors = {
                name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()
            }
            projections = [[tensors["linear.weight"].float(), None, torch.nn.Identity(), None]]
        elif dense and (
            given.get("model_type") == "ColBERT"
            or given.get("similarity_fn_name") == "MaxSim"
            or given.keys() & {"query_prefix", "document_prefix", "query_length", "document_length"}
            or any("pylate" in module["type"] for module in modules)
        ):
            projections = [_projection(path) for path in dense]
        else:
            return None
        defaults = {
            "query_prefix": "[Q] ",
            "document_prefix": "[D] ",
            "query_length": 32,
            "document_length": 180,
            "do_query_expansion": True,
            "attend_to_expansion_tokens": False,
            "skiplist_words": list(string.punctuation),
        }
        stated = {name: value for name, value in given.items() if value is not None}
        return cls(folder, defaults | stated, projections)

    def encode(
        self, tokenizer: Any, names: Any, text: str, side: str, max_tokens: int
    ) -> tuple[tuple[int, ...], dict[str, torch.Tensor], bool]:
        """The tokens of a text, the arguments of the model's call, and whether the text is cut. `names` is the
        published tokenizer, which knows the names of special tokens."""
        prefix = self.prefixes[side]
        text = (self.prompts[side] + (text.lower() if self._lowers else text)).strip()
        room = max_tokens - bool(prefix)
        encoded = tokenizer([text], truncation=True, max_length=room)
        ids = list(encoded["input_ids"][0])
        if prefix:
            ids.insert(1, names.convert_tokens_to_ids(prefix))
        attention = [1] * len(ids)
        if side == "query" and self._expands:
            token = next(filter(None, (names.mask_token, names.eos_token, names.pad_token)))
            missing = max_tokens - len(ids)
            ids += [names.convert_tokens_to_ids(token)] * missing
            attention += [int(self._attends)] * missing
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([attention])}
        return tuple(ids), inputs, bool(encoded.encodings[0].overflowing)

    def best_matches(
        self, names: Any, query: torch.Tensor, passage: torch.Tensor, passage_ids: tuple[int, ...]
    ) -> torch.Tensor:
        """Cosine of the best passage token of each query token, `[Nq]`, from the states `[L, H]` of both texts."""
        skipped = {names.convert_tokens_to_ids(word) for word in self._skipped}
        kept = [place for place, token in enumerate(passage_ids) if token not in skipped]
        return (self._vectors(query) @ self._vectors(passage)[kept].T).max(1).values

    def _vectors(self, states: torch.Tensor) -> torch.Tensor:
        for weight, bias, activation, residual in self._projections:
            projected = activation(torch.nn.functional.linear(states, weight.to(states), _like(bias, states)))
            if residual is not None:
                projected = projected + (states if isinstance(residual, int) else states @ residual.to(states).T)
            states = projected
        return torch.nn.functional.normalize(states, dim=-1)


def _projection(folder: Path) -> list[Any]:
    settings, tensors = _read(folder / "config.json"), load_file(folder / "model.safetensors")
    activation = getattr(torch.nn, settings["activation_function"].rpartition(".")[2])()
    residual = tensors.get("residual.weight", 1) if settings.get("use_residual") else None
    return [tensors["linear.weight"], tensors.get("linear.bias"), activation, residual]


def _like(bias: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor | None:
    return None if bias is None else bias.to(states)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_text(path) or "{}")
    return content
