"""Tiny late-interaction checkpoints in the published file formats, for each setting that these formats have.

`python -m tests.colbert make FOLDER` writes them, and `python tests/colbert.py record FOLDER FILE`, in an environment
with the package `pylate`, records its token ids, vectors and scores (`make pylate` runs both). The recorded file is
part of the tests, so they need no `pylate`. The second command imports nothing of this repository.
"""

import hashlib
import json
import re
import shutil
import string
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

__all__ = ["CASES", "PASSAGES", "QUERIES", "RECORDED", "digest", "make_all"]

RECORDED = Path(__file__).parent / "unit/engine/kinds/pylate.json"

QUERIES = [
    "Which city is the capital of France?",
    "bees",
    "How do bees make honey, and where do they keep it during the long winter months in the north of the country?",
]
PASSAGES = [
    "Paris is the capital and largest city of France.",
    "",
    "Honey: bees make it! (They keep it in wax cells, well above 30 degrees.)",
    "  leading and trailing space  ",
    "The train leaves at noon. " * 12,
    "Größe, naïve café, 東京 🎉",
]


class Case(NamedTuple):
    """A checkpoint: the architecture of its backbone, its settings, and its projections."""

    architecture: str
    settings: dict[str, Any]
    """Contents of config_sentence_transformers.json or, for Stanford's format, of artifact.metadata."""
    dense: tuple[dict[str, Any], ...] = ({"out_features": 32, "bias": False},)
    dense_type: str = "pylate.models.Dense.Dense"
    lowers: bool = False
    is_word_piece: bool = False
    """Whether the tokenizer is BERT's own kind: lower case, words and their pieces, and unknown characters."""
    is_stanford: bool = False


_PREFIXES = {"query_prefix": "[Q] ", "document_prefix": "[D] "}
_UNUSED = {"query_prefix": "[unused0]", "document_prefix": "[unused1]"}
_LENGTHS = {"query_length": 16, "document_length": 40}

CASES = {
    "bert": Case("bert", {**_PREFIXES, **_LENGTHS, "skiplist_words": list(string.punctuation)}, is_word_piece=True),
    "bert-attends": Case("bert", {**_PREFIXES, **_LENGTHS, "attend_to_expansion_tokens": True, "skiplist_words": []}),
    "bert-bare": Case(
        "bert",
        {"query_prefix": "", "document_prefix": "", **_LENGTHS, "do_query_expansion": False, "skiplist_words": ["."]},
        dense=({"out_features": 24, "bias": True},),
    ),
    "bert-projections": Case(
        "bert",
        {**_UNUSED, **_LENGTHS, "similarity_fn_name": "MaxSim", "skiplist_words": [",", "no token"]},
        dense=(
            {"out_features": 96, "bias": True, "activation_function": "torch.nn.modules.activation.GELU"},
            {"out_features": 96, "bias": False, "use_residual": True},
            {"out_features": 48, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
            | {"use_residual": True},
        ),
        lowers=True,
        is_word_piece=True,
    ),
    "bert-defaults": Case("bert", {**_PREFIXES, "query_length": None, "skiplist_words": None}),
    "modernbert": Case("modernbert", {**_PREFIXES, "query_length": 48, "document_length": 90, "skiplist_words": ["."]}),
    "modernbert-unexpanded": Case(
        "modernbert", {**_PREFIXES, "query_length": 48, "document_length": 90, "do_query_expansion": False}
    ),
    "modernbert-prompts": Case(
        "modernbert",
        {**_PREFIXES, **_LENGTHS, "prompts": {"query": "search_query: ", "document": "search_document: "}},
    ),
    "xlm_roberta": Case(
        "xlm_roberta",
        {**_PREFIXES, **_LENGTHS},
        dense=({"out_features": 32, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"},),
        dense_type="sentence_transformers.models.Dense",
    ),
    "stanford": Case(
        "bert",
        {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 16, "doc_maxlen": 40}
        | {"attend_to_mask_tokens": False, "mask_punctuation": True, "similarity": "cosine", "dim": 32},
        is_word_piece=True,
        is_stanford=True,
    ),
}


def make_all(root: Path) -> dict[str, Path]:
    """Writes the checkpoint of every case. The same code writes the same bytes."""
    return {name: make(root / name, case) for name, case in CASES.items()}


def make(folder: Path, case: Case) -> Path:
    """Writes one checkpoint, and returns its folder."""
    from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint

    make_checkpoint(folder, Architecture(case.architecture), "tiny", dtype="float32")
    weights = load_file(folder / "model.safetensors")
    if case.is_word_piece:
        _use_word_pieces(folder)
    prefixes = [case.settings.get(f"{side}_prefix") for side in ("query", "document")]
    _add_tokens(folder, [prefix for prefix in prefixes if prefix])
    _without_classifier(folder, weights, _vocab_size(folder), keeps_names=case.is_stanford)
    if case.is_stanford:
        _write(folder / "artifact.metadata", case.settings)
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {"linear.weight": _random((32, 64), "linear")}, folder / "model.safetensors")
        return folder
    _write(folder / "config_sentence_transformers.json", case.settings)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 63, "do_lower_case": case.lowers})
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    width = 64
    for number, dense in enumerate(case.dense, 1):
        modules.append({"idx": number, "name": str(number), "path": f"{number}_Dense", "type": case.dense_type})
        settings = {"in_features": width, "activation_function": "torch.nn.modules.linear.Identity", **dense}
        _write_dense(folder / f"{number}_Dense", settings)
        width = dense["out_features"]
    _write(folder / "modules.json", modules)
    return folder


def digest(folder: Path) -> str:
    """SHA-256 of the weights and the tokenizer, which the recorded numbers are for."""
    found = hashlib.sha256()
    for path in sorted([*folder.rglob("*.safetensors"), folder / "tokenizer.json"]):
        found.update(path.read_bytes())
    return found.hexdigest()


def _without_classifier(
    folder: Path, weights: dict[str, torch.Tensor], vocab_size: int, *, keeps_names: bool = False
) -> None:
    """Keeps the encoder of a classifier, with as many embeddings as its tokenizer has tokens."""
    config = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    prefix = {"bert": "bert.", "xlm-roberta": "roberta.", "modernbert": "model."}[family]
    kept = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if not keeps_names:
        kept = {name.removeprefix(prefix): tensor for name, tensor in kept.items()}
    (words,) = (name for name in kept if name.endswith(("word_embeddings.weight", "tok_embeddings.weight")))
    rows = kept[words]
    if vocab_size > len(rows):
        rows = torch.cat([rows, 0.3 * _random((vocab_size - len(rows), rows.size(1)), "added rows")])
    kept[words] = rows[:vocab_size].clone()
    architecture = {"bert": "BertModel", "xlm-roberta": "XLMRobertaModel", "modernbert": "ModernBertModel"}[family]
    config |= {"architectures": ["HF_ColBERT" if keeps_names else architecture], "vocab_size": vocab_size}
    _write(folder / "config.json", config)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def _add_tokens(folder: Path, names: list[str]) -> None:
    """Adds plain tokens, as pylate does with its prefixes."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(names)
    tokenizer.save(str(folder / "tokenizer.json"))


def _use_word_pieces(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    from rerank_service.engine.linear.sample_text import SAMPLE_TEXT

    special = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Counted here, because the library's trainer orders pieces differently in each process.
    words = Counter(re.findall(r"[a-z]+", SAMPLE_TEXT.lower()))
    frequent = sorted(words, key=lambda word: (-words[word], word))[:300]
    characters = [*string.ascii_lowercase, *string.digits]
    pieces = [*string.punctuation, *characters, *(f"##{end}" for end in [*characters, "ing", "ed", "er", "es", "ly"])]
    vocabulary = list(dict.fromkeys([*special, *pieces, *frequent]))
    tokenizer = Tokenizer(
        models.WordPiece({piece: number for number, piece in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.add_special_tokens([name for name in special if not name.startswith("[unused")])
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 4), ("[SEP]", 5)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def _vocab_size(folder: Path) -> int:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


def _write_dense(folder: Path, settings: dict[str, Any]) -> None:
    folder.mkdir()
    _write(folder / "config.json", settings)
    size_in, size_out = settings["in_features"], settings["out_features"]
    tensors = {"linear.weight": _random((size_out, size_in), folder.name)}
    if settings["bias"]:
        tensors["linear.bias"] = _random((size_out, 1), f"{folder.name} bias")[:, 0].clone()
    if settings.get("use_residual") and size_in != size_out:
        tensors["residual.weight"] = _random((size_out, size_in), f"{folder.name} residual")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _random(shape: tuple[int, int], name: str) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[1] ** -0.5


def _write(path: Path, settings: object) -> None:
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def record(root: Path, target: Path) -> None:
    """Writes what pylate computes for each checkpoint: token ids, a part of the vectors, and scores."""
    import pylate
    import transformers
    from pylate import models
    from pylate.scores import colbert_scores

    made: dict[str, Any] = {
        "made_with": {name.__name__: name.__version__ for name in (pylate, transformers, torch)},
        "command": "python tests/colbert.py record",
        "cases": {},
    }
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        before = digest(folder)
        model = models.ColBERT(str(folder), device="cpu")
        prompts = model.prompts or {}
        sides = {}
        for side, texts in (("query", QUERIES), ("document", PASSAGES)):
            is_query, prompt = side == "query", prompts.get(side) or None
            encode: Callable[..., Any] = model.encode
            found = encode(texts, is_query=is_query, convert_to_numpy=False, batch_size=1, prompt=prompt)
            tokens = [model.tokenize([(prompt or "") + text], is_query=is_query) for text in texts]
            sides[side] = {
                "ids": [one["input_ids"][0].tolist() for one in tokens],
                "rows": [len(one) for one in found],
                "vectors": [[round(float(one[row, 0]), 7) for row in range(len(one))] for one in found],
            }
            sides[side]["states"] = found
        scores = [
            [float(colbert_scores(q[None], d[None])[0, 0]) for d in sides["document"]["states"]]
            for q in sides["query"]["states"]
        ]
        for side in sides.values():
            del side["states"]
        made["cases"][folder.name] = {"digest": before, **sides, "scores": scores}
    target.write_text(json.dumps(made, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command, first, *rest = sys.argv[1:]
    if command == "make":
        shutil.rmtree(first, ignore_errors=True)
        make_all(Path(first))
    else:
        record(Path(first), Path(rest[0]))
