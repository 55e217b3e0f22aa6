"""Measures the engines on one GPU, relative to the speed of the chip, and prints a table.

    python benchmarks/gpu.py [--json benchmarks/results/gpu.json]

Needs torch and transformers, but neither Ray nor an installation of this package. The script writes random checkpoints
with the published shapes of the 1B and the 4B to a temporary folder (10 GB in total), and loads them as the service
does. MFU is the rate of floating-point operations in the forward pass, divided by the rate in a large bfloat16 matrix
product in the same run. Rows in float8 use the same divisor, so all rows are comparable.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout, without an installation

from benchmarks.provenance import provenance
from rerank_service.config import CheckpointConfig, Dtype, EngineConfig, ModelConfig
from rerank_service.engine import EncodedPair, Engine, Truncate, load_engine
from rerank_service.engine.loading import read_model_config
from rerank_service.engine.score_all import token_budget_batches
from rerank_service.engine.text.tokenise import load_tokenizer
from rerank_service.tools.bench.workload import QUERY, Lengths, draw_lengths, make_passages
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint

PRODUCT_SIZE = 8192
"""Size of the square bfloat16 matrices in the reference product, in which an H100 reaches about 800 of its 989
TFLOP/s."""

SIZES = {
    "1b": (Architecture.LLAMA_BIDIREC, "1b"),
    "4b": (Architecture.MISTRAL, "4b"),
    "tiny": (Architecture.LLAMA_BIDIREC, "tiny"),
}
FULL = "512"
"""Pairs of exactly 512 tokens, as in NVIDIA's published figures."""

REFERENCE_PAIRS = 16


@dataclass(frozen=True)
class EngineVariant:
    """Settings of an engine."""

    name: str
    dtype: Dtype
    cuda_graphs: bool = True
    compile: bool = False


VARIANTS = (
    EngineVariant("bfloat16, kernels launched one by one", Dtype.BFLOAT16, cuda_graphs=False),
    EngineVariant("bfloat16, graphs", Dtype.BFLOAT16),
    EngineVariant("bfloat16, graphs, compiled", Dtype.BFLOAT16, compile=True),
    EngineVariant("float8, graphs, compiled", Dtype.FLOAT8, compile=True),
)


@dataclass(frozen=True)
class GpuFigures:
    """A row of the table."""

    model: str
    variant: str
    lengths: str
    pairs_per_s: float
    tokens_per_s: float
    mfu: float
    """Operations per second, as a share of the rate in the reference product."""
    one_pair_ms: float
    """Median time of a single pair of about 128 tokens."""
    max_logit_error: float
    """Largest difference from the logits of the same weights in float32, over a few pairs."""
    logit_std: float


def main() -> None:
    """Measures the chosen models and prints a table."""
    options = _parse_options()
    rows = []
    limit = product_flops_per_s(options.device)
    print(f"large bfloat16 matrix product: {limit / 1e12:.1f} TFLOP/s", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="rerank-gpu-") as folder:
        for size in options.sizes.split(","):
            architecture, shape = SIZES[size]
            print(f"writing a random {size} checkpoint", file=sys.stderr)
            checkpoint = make_checkpoint(Path(folder) / size, architecture, shape, dtype="bfloat16")
            rows += list(bench_model(size, checkpoint, options, limit))
    print(table(rows))
    if options.json:
        record = provenance(["torch", "transformers", "triton"])
        record |= {"product_tflops": round(limit / 1e12, 1), "results": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1b,4b", help=f"any of {', '.join(SIZES)}, separated by commas")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pairs", type=int, default=512, help="pairs per run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def bench_model(size: str, checkpoint: Path, options: argparse.Namespace, limit: float) -> Iterator[GpuFigures]:
    """Figures of every variant of a model on every distribution of lengths."""
    config = read_model_config(checkpoint)
    reference = reference_logits(checkpoint, options.device)
    for variant in VARIANTS if options.device.startswith("cuda") else VARIANTS[:1]:
        print(f"{size}: {variant.name}", file=sys.stderr)
        try:
            engine = load(checkpoint, variant, options.device)
        except Exception as problem:  # the other variants run even if this one cannot
            print(f"{size}: {variant.name} does not run here: {problem}", file=sys.stderr)
            continue
        logits = engine.score(reference_pairs(engine, checkpoint))
        error = float(np.abs(np.subtract(logits, reference)).max())
        alone = one_pair_ms(engine, checkpoint)
        for lengths in (FULL, *(lengths.value for lengths in Lengths)):
            pairs = draw_pairs(engine, checkpoint, lengths, options.pairs)
            seconds = statistics.median(run(engine, pairs, options.batch_tokens) for _ in range(options.repeats + 1))
            num_tokens = sum(pair.num_tokens for pair in pairs)
            yield GpuFigures(
                model=size,
                variant=variant.name,
                lengths=lengths,
                pairs_per_s=round(len(pairs) / seconds, 1),
                tokens_per_s=round(num_tokens / seconds),
                mfu=round(flops(config, [pair.num_tokens for pair in pairs]) / seconds / limit, 3),
                one_pair_ms=round(alone, 2),
                max_logit_error=round(error, 4),
                logit_std=round(float(np.std(reference)), 4),
            )
        del engine
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()


def load(checkpoint: Path, variant: EngineVariant, device: str) -> Engine[Any]:
    """Loads the engine as in a replica."""
    options = EngineConfig(device=device, dtype=variant.dtype, cuda_graphs=variant.cuda_graphs, compile=variant.compile)
    model = ModelConfig(id="bench", checkpoint=CheckpointConfig(source=str(checkpoint)), engine=options)
    return load_engine(model.model_copy(update={"window_tokens": _window(checkpoint)}))


def reference_logits(checkpoint: Path, device: str) -> list[float]:
    """Logits of a few pairs in float32."""
    engine = load(checkpoint, EngineVariant("reference", Dtype.FLOAT32, cuda_graphs=False), device)
    return engine.score(reference_pairs(engine, checkpoint))


def reference_pairs(engine: Engine[Any], checkpoint: Path) -> list[EncodedPair]:
    """A few pairs, the same for every variant."""
    return draw_pairs(engine, checkpoint, Lengths.SHORT.value, REFERENCE_PAIRS)


def draw_pairs(engine: Engine[Any], checkpoint: Path, lengths: str, count: int) -> list[EncodedPair]:
    """Draws seeded pairs from a distribution; pairs of `FULL` are truncated to 512 tokens."""
    drawn = [600] * count if lengths == FULL else draw_lengths(Lengths(lengths), count)
    pairs: list[EncodedPair] = engine.tokenise(QUERY, make_passages(load_tokenizer(checkpoint), drawn), Truncate.END)
    if lengths != FULL:
        return pairs
    return [EncodedPair(pair.token_ids[:512], min(512, pair.num_tokens), True) for pair in pairs]


def run(engine: Engine[Any], pairs: Sequence[EncodedPair], batch_tokens: int) -> float:
    """Seconds for scoring all pairs, with as many batches in flight as in the scheduler."""
    batch_tokens = min(batch_tokens, engine.memory_tokens or batch_tokens)
    in_flight: deque[Any] = deque()
    started = time.perf_counter()
    for batch in token_budget_batches(pairs, batch_tokens):
        in_flight.append(engine.launch([pairs[index] for index in batch]))
        if len(in_flight) == engine.max_in_flight:
            in_flight.popleft().wait()
    while in_flight:
        in_flight.popleft().wait()
    return time.perf_counter() - started


def one_pair_ms(engine: Engine[Any], checkpoint: Path) -> float:
    """Milliseconds for scoring a single pair of about 128 tokens, as the median of 20 runs."""
    passages = make_passages(load_tokenizer(checkpoint), [112])
    pairs = engine.tokenise(QUERY, passages, Truncate.END)
    taken = []
    for _ in range(25):
        started = time.perf_counter()
        engine.score(pairs)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken[5:])


def product_flops_per_s(device: str) -> float:
    """Operations per second in a large bfloat16 matrix product, as the maximum of ten runs."""
    size = PRODUCT_SIZE if device.startswith("cuda") else 512
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    taken = []
    for _ in range(13):
        started = time.perf_counter()
        left @ right
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return 2 * size**3 / min(taken[3:])


def flops(config: dict[str, Any], lengths: Sequence[int]) -> float:
    """Operations of a forward pass over sequences of these lengths. Only matrix products count, with two operations per
    multiply-add."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * (config.get("head_dim") or hidden // config["num_attention_heads"])
    key = query * config["num_key_value_heads"] // config["num_attention_heads"]
    per_token = 2 * (hidden * (query + 2 * key) + query * hidden + 3 * hidden * inner)
    attention = 4 * query * sum(length**2 for length in lengths)
    return float(config["num_hidden_layers"] * (per_token * sum(lengths) + attention))


def table(rows: Sequence[GpuFigures]) -> str:
    """A Markdown table."""
    heads = ("model", "how", "pairs of", "pairs/s", "tokens/s", "MFU", "one pair, ms", "logit error (std)")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        error = f"{row.max_logit_error:.3f} ({row.logit_std:.2f})"
        cells = (
            row.model,
            row.variant,
            row.lengths,
            f"{row.pairs_per_s:.0f}",
            f"{row.tokens_per_s:.0f}",
            f"{row.mfu:.0%}",
        )
        lines.append("| " + " | ".join((*cells, f"{row.one_pair_ms:.1f}", error)) + " |")
    return "\n".join(lines)


def _window(checkpoint: Path) -> int:
    return min(4096, read_model_config(checkpoint)["max_position_embeddings"])


if __name__ == "__main__":
    main()
