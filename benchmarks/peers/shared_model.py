"""The checkpoint for all contenders, in three formats, and seeded requests with their expected logits."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import BertForSequenceClassification

from benchmarks.peers.environments import BENCH_FOLDER, InstallFailed, program
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import CheckpointConfig
from rerank_service.tools.bench.engine import make_classifier
from rerank_service.tools.bench.workload import ENCODER, QUERY, make_passages

__all__ = [
    "LOADS",
    "ONNX_ENVIRONMENT",
    "LoadShape",
    "SharedModels",
    "Workload",
    "draw_workload",
    "export_onnx",
    "load_bare",
    "write_classifier",
]

ONNX_ENVIRONMENT = "infinity"
"""Environment that has both torch and ONNX Runtime."""


@dataclass(frozen=True)
class LoadShape:
    """Lengths of the pairs in tokens, and how many of them a round scores."""

    mean_tokens: int
    deviation: int
    fewest_tokens: int
    most_tokens: int
    num_requests: int
    num_passages: int
    """Passages per request."""

    bare_pairs: int
    """Pairs in one run of the bare forward pass."""

    big_passages: int
    """Passages of the large request behind which a small request waits."""


LOADS = {
    126: LoadShape(126, 28, 72, 184, num_requests=16, num_passages=40, bare_pairs=128, big_passages=300),
    390: LoadShape(390, 70, 220, 505, num_requests=16, num_passages=12, bare_pairs=40, big_passages=100),
}
"""Load by mean length of a pair. A round takes about the same time with each of them."""

_REFERENCE_BATCH = 32


@dataclass(frozen=True)
class SharedModels:
    """Folders of the checkpoint, by format."""

    classifier: Path = BENCH_FOLDER / "models" / "classifier"
    onnx: Path = BENCH_FOLDER / "models" / "onnx"
    onnx_int8: Path = BENCH_FOLDER / "models" / "onnx-int8"


@dataclass(frozen=True)
class Workload:
    """Requests and their expected logits."""

    query: str
    requests: list[list[str]]
    pairs: list[Encoding]
    """Pairs of all requests, in order."""

    logits: list[np.ndarray[Any, np.dtype[np.float32]]]
    """Logits of each request, from transformers in float32."""

    @property
    def num_pairs(self) -> int:
        return len(self.pairs)

    @property
    def mean_tokens(self) -> float:
        return float(np.mean([len(pair.ids) for pair in self.pairs]))

    @property
    def logit_range(self) -> float:
        """Difference between the highest and the lowest logit, for comparison with errors."""
        return float(np.ptp(np.concatenate(self.logits)))

    def sample(self, num_pairs: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        """Token ids of about `num_pairs` pairs, with the same mix of lengths."""
        step = max(1, self.num_pairs // num_pairs)
        return [np.array(pair.ids) for pair in sorted(self.pairs, key=len)[::step]]


def write_classifier(models: SharedModels) -> None:
    """Writes the checkpoint in safetensors, unless it exists.

    The encoder's own tokenizer file truncates and pads to 128 tokens. Both settings are removed, because some peers
    would apply them and compute different scores.
    """
    if (models.classifier / "special_tokens_map.json").exists():
        return
    models.classifier.mkdir(parents=True, exist_ok=True)
    make_classifier(resolve_checkpoint(CheckpointConfig(source=ENCODER)), models.classifier)
    tokenizer = Tokenizer.from_file(str(models.classifier / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(models.classifier / "tokenizer.json"))
    settings = json.loads((models.classifier / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {key: value for key, value in settings.items() if key.endswith("_token")}
    (models.classifier / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")


def export_onnx(models: SharedModels) -> None:
    """Exports the checkpoint to ONNX, unless the files exist. Raises `InstallFailed`."""
    if (models.onnx_int8 / "model.onnx").exists():
        return
    script = str(Path(__file__).with_name("export_onnx.py"))
    folders = [str(models.classifier), str(models.onnx), str(models.onnx_int8)]
    command = [program(ONNX_ENVIRONMENT, "python"), script, *folders]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        shutil.rmtree(models.onnx_int8, ignore_errors=True)
        raise InstallFailed(f"the export to ONNX failed: {result.stderr.strip()[-500:]}")


def load_bare(models: SharedModels) -> Any:
    """Loads the checkpoint with unmodified transformers."""
    return BertForSequenceClassification.from_pretrained(models.classifier).eval()


def draw_workload(models: SharedModels, bare: Any, load: LoadShape) -> Workload:
    """Draws seeded requests with distinct passages."""
    tokenizer = Tokenizer.from_file(str(models.classifier / "tokenizer.json"))
    overhead = len(tokenizer.encode(QUERY, "").ids)
    rng = np.random.default_rng(0)
    num_pairs = load.num_requests * load.num_passages
    drawn = rng.normal(load.mean_tokens, load.deviation, num_pairs).clip(load.fewest_tokens, load.most_tokens)
    passages = make_passages(tokenizer, (drawn.round().astype(int) - overhead).tolist())
    pairs = tokenizer.encode_batch([(QUERY, passage) for passage in passages])
    logits = _reference_logits(bare, pairs)
    return Workload(
        query=QUERY,
        requests=[passages[start : start + load.num_passages] for start in range(0, num_pairs, load.num_passages)],
        pairs=pairs,
        logits=np.split(logits, load.num_requests),
    )


@torch.inference_mode()
def _reference_logits(bare: Any, pairs: Sequence[Encoding]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits `[len(pairs)]` in the order of `pairs`, scored in batches of similar lengths."""
    logits = np.empty(len(pairs), dtype=np.float32)
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index].ids))
    for start in range(0, len(order), _REFERENCE_BATCH):
        batch = order[start : start + _REFERENCE_BATCH]
        ids, types, mask = (
            pad_sequence([torch.tensor(getattr(pairs[index], part)) for index in batch], batch_first=True)
            for part in ("ids", "type_ids", "attention_mask")
        )
        logits[batch] = bare(ids, attention_mask=mask, token_type_ids=types).logits[:, 0].numpy()
    return logits
