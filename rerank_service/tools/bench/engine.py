"""CPU time of engines, compared with the bare forward pass of the same weights, and with their matrix products.

All of them run on the same number of threads, and their repeats alternate, so other work on the machine affects all of
them. `bare.py` defines the bare forward pass and the products.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaConfig, LlamaModel
from transformers.utils import logging as transformers_logging

from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import CheckpointConfig, Dtype, EngineConfig, ModelConfig
from rerank_service.engine import Engine, Truncate, load_engine
from rerank_service.engine.device.precision import multiplies_int8
from rerank_service.engine.linear.packed import can_pack
from rerank_service.engine.loading import native_config, read_model_config
from rerank_service.engine.score_all import score_all
from rerank_service.engine.text.tokenise import load_tokenizer
from rerank_service.tools.bench.bare import BARE_BATCHES, bare_forward, product_runs
from rerank_service.tools.bench.workload import ENCODER, QUERY, Lengths, draw_lengths, make_passages
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint

__all__ = ["EngineFigures", "bench_engines", "make_classifier"]

_BATCH_TOKENS = 4096


class EngineFigures(NamedTuple):
    """Figures of an engine in one precision."""

    engine: str
    dtype: str
    cpu_s_per_1k_pairs: float
    bare_cpu_s_per_1k_pairs: float
    """The faster of the two bare forward passes."""
    ratio_to_bare: float
    bare_batch_pairs: int
    """Pairs per batch of the faster bare forward pass: 1 or 32."""
    share_of_peak: float
    """Share of the engine's CPU time that its matrix products alone would take, at the fastest speed that this
    processor reaches on the model's shapes in this precision."""
    pairs_per_s: float
    tokens_per_s: float
    max_logit_error: float
    """Largest difference from the logits of the same engine in float32."""


class _BenchedEngine(NamedTuple):
    name: str
    source: Path | str
    bare: Any


def bench_engines(lengths: Lengths, num_pairs: int, repeats: int, num_threads: int | None) -> Iterator[EngineFigures]:
    """Yields figures of every engine in float32 and, if the processor supports them, in bfloat16 and int8."""
    with _contenders() as contenders:
        for contender in contenders:
            yield from _bench(contender, lengths, num_pairs, repeats, num_threads)


def _bench(
    contender: _BenchedEngine, lengths: Lengths, num_pairs: int, repeats: int, num_threads: int | None
) -> Iterator[EngineFigures]:
    dtypes = [Dtype.FLOAT32]
    dtypes += [Dtype.BFLOAT16] if can_pack(torch.bfloat16) else []
    dtypes += [Dtype.INT8] if multiplies_int8() else []
    engines = {dtype: _load(contender, dtype, num_threads) for dtype in dtypes}
    tokenizer = load_tokenizer(resolve_checkpoint(_checkpoint(contender)))
    passages = make_passages(tokenizer, draw_lengths(lengths, num_pairs))
    pairs = engines[Dtype.FLOAT32].tokenise(QUERY, passages, Truncate.END)
    logits: dict[str, list[float]] = {}

    def run(dtype: Dtype) -> None:
        logits[dtype] = score_all(engines[dtype], pairs, _BATCH_TOKENS)

    token_ids = [pair.token_ids for pair in pairs]
    runs: dict[Any, Callable[[], None]] = {dtype: partial(run, dtype) for dtype in dtypes}
    runs |= {batch_pairs: partial(bare_forward, contender.bare, token_ids, batch_pairs) for batch_pairs in BARE_BATCHES}
    for dtype in dtypes:
        made = product_runs(contender.bare, dtype, sum(map(len, token_ids)))
        runs |= {(dtype, name): multiply for name, multiply in made.items()}
    cpu_s, wall_s = _alternate(runs, repeats)
    num_tokens = sum(pair.num_tokens for pair in pairs)
    bare = min(BARE_BATCHES, key=lambda batch_pairs: cpu_s[batch_pairs])
    for dtype in dtypes:
        products_cpu_s = min(cpu_s[key] for key in cpu_s if isinstance(key, tuple) and key[0] is dtype)
        yield EngineFigures(
            engine=contender.name,
            dtype=dtype.value,
            cpu_s_per_1k_pairs=round(1000 * cpu_s[dtype] / num_pairs, 2),
            bare_cpu_s_per_1k_pairs=round(1000 * cpu_s[bare] / num_pairs, 2),
            ratio_to_bare=round(cpu_s[dtype] / cpu_s[bare], 3),
            bare_batch_pairs=bare,
            share_of_peak=round(products_cpu_s / cpu_s[dtype], 3),
            pairs_per_s=round(num_pairs / wall_s[dtype], 1),
            tokens_per_s=round(num_tokens / wall_s[dtype]),
            max_logit_error=float(np.abs(np.subtract(logits[dtype], logits[Dtype.FLOAT32])).max()),
        )


def _alternate(runs: dict[Any, Callable[[], None]], repeats: int) -> tuple[dict[Any, float], dict[Any, float]]:
    """Median CPU-seconds and wall-clock seconds of each run; the first round is a warm-up."""
    cpu_s: dict[Any, list[float]] = {name: [] for name in runs}
    wall_s: dict[Any, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            cpu_s[name].append(time.process_time() - cpu)
            wall_s[name].append(time.perf_counter() - wall)
    medians = [{name: statistics.median(times[1:]) for name, times in taken.items()} for taken in (cpu_s, wall_s)]
    return medians[0], medians[1]


def _load(contender: _BenchedEngine, dtype: Dtype, num_threads: int | None) -> Engine[Any]:
    options = EngineConfig(device="cpu", dtype=dtype, num_threads=num_threads)
    return load_engine(ModelConfig(id=contender.name, checkpoint=_checkpoint(contender), engine=options))


def _checkpoint(contender: _BenchedEngine) -> CheckpointConfig:
    return CheckpointConfig(source=str(contender.source))


@contextmanager
def _contenders() -> Iterator[list[_BenchedEngine]]:
    """Engines to measure: the embedded model's encoder, with and without a random head, and a small bidirectional
    Llama."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # a bare model does not use every tensor
    with tempfile.TemporaryDirectory(prefix="rerank-bench-") as folder:
        encoder = resolve_checkpoint(CheckpointConfig(source=ENCODER))
        classifier = make_classifier(encoder, Path(folder) / "classifier")
        llama = make_checkpoint(Path(folder) / "llama", Architecture.LLAMA_BIDIREC, "small", dtype="float32")
        bare_encoder = BertModel.from_pretrained(encoder, add_pooling_layer=False).eval()
        yield [
            _BenchedEngine(
                "sequence_classifier", classifier, BertForSequenceClassification.from_pretrained(classifier).eval()
            ),
            _BenchedEngine("late_interaction", ENCODER, bare_encoder),
            _BenchedEngine("bidirectional_decoder", llama, _bare_llama(llama)),
        ]


def _bare_llama(folder: Path) -> Any:
    config = native_config(LlamaConfig, read_model_config(folder))
    config.is_causal = False
    return LlamaModel.from_pretrained(folder, config=config, key_mapping={r"^model\.": ""}).eval()


def make_classifier(encoder: Path, folder: Path) -> Path:
    """Writes a cross-encoder with the embedded model's encoder and a random head, for measuring speed only."""
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(encoder, num_labels=1)
    model = BertForSequenceClassification(config)
    model.bert.load_state_dict(BertModel.from_pretrained(encoder).state_dict())
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((encoder / name).read_bytes())
    return folder
