"""Checks of whole engines on a GPU: waits, graphs, and errors of the device."""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

from benchmarks.on_gpu.kernel_steps import verdict
from benchmarks.on_gpu.measure import draw_pairs
from benchmarks.on_gpu.models import collected_warnings, load, window, written
from benchmarks.on_gpu.plan import Variant
from rerank_service.config import CheckpointConfig, EngineConfig, ModelConfig
from rerank_service.engine import EncodedPair, Engine, Truncate, load_engine
from rerank_service.engine.device.pack import pack
from rerank_service.errors import DeviceFailed
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint

__all__ = ["STEPS"]

_PASSAGES = ["the quick brown fox jumps over the lazy dog", "a", "Paris is the capital of France. " * 6, "fox " * 20]
_TOLERANCES = {"bfloat16": 0.15, "float16": 0.05, "float8": 0.6}
"""Largest difference of a logit of a tiny model from float32; its logits spread over several units."""
_GRAPH_TOLERANCE = 0.25
"""As in `graphs`: the largest difference of a state, as a share of the state's largest component."""


def waits(options: argparse.Namespace) -> Iterator[str]:
    """Every engine in every precision: no wait between launch and logits, and logits as in float32."""
    is_cuda = options.device.startswith("cuda")
    with tempfile.TemporaryDirectory(prefix="rerank-gpu-") as folder:
        for name, checkpoint in _tiny_checkpoints(Path(folder)):
            expected = _logits(checkpoint, name, "float32", options.device, is_checked=False)
            for dtype in _TOLERANCES if is_cuda else ("bfloat16",):
                try:
                    logits = _logits(checkpoint, name, dtype, options.device, is_checked=is_cuda)
                except Exception as problem:  # the other engines are checked even if this one fails
                    yield f"FAIL: {name} in {dtype}: {type(problem).__name__}: {str(problem).splitlines()[0][:200]}"
                    continue
                yield verdict(
                    f"{name} in {dtype}", float(np.abs(np.subtract(logits, expected)).max()), _TOLERANCES[dtype]
                )


def _tiny_checkpoints(folder: Path) -> Iterator[tuple[str, Path]]:
    for architecture in Architecture:
        yield architecture.value, make_checkpoint(folder / architecture.value, architecture, "tiny", dtype="float32")
    classifier, encoder = folder / Architecture.BERT.value, folder / "late_interaction"
    config = BertConfig(**json.loads((classifier / "config.json").read_text(encoding="utf-8")))
    BertModel.from_pretrained(classifier, config=config).save_pretrained(encoder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(classifier / name, encoder / name)
    yield encoder.name, encoder


def _logits(checkpoint: Path, name: str, dtype: str, device: str, *, is_checked: bool) -> list[float]:
    # Compiling every engine would take many minutes, and graphs are the same in every precision.
    is_usual = dtype == "bfloat16"
    settings: dict[str, Any] = {"device": device, "dtype": dtype, "cuda_graphs": is_usual}
    settings["compile"] = is_usual and name == Architecture.LLAMA_BIDIREC
    settings |= {"kind": name, "passage_cache_bytes": 1_000_000} if name == "late_interaction" else {}
    source = CheckpointConfig(source=str(checkpoint))
    engine = load_engine(ModelConfig(id="step", checkpoint=source, engine=EngineConfig(**settings)))
    pairs = engine.tokenise("which animal jumps", _PASSAGES, Truncate.END)
    logits = []
    for batch in (pairs, pairs[1:], pairs[::-1]):  # the first may still load kernels and allocate
        with _waits_are_errors(is_checked and bool(logits)):
            pending = engine.launch(batch)
        logits.append(pending.wait())
    if logits[2][::-1] != logits[0]:
        difference = np.abs(np.subtract(logits[2][::-1], logits[0])).max()
        print(f"note: {name} in {dtype}: the order of a batch changes logits by up to {difference:.2g}", flush=True)
    return logits[0]


@contextmanager
def _waits_are_errors(is_on: bool) -> Iterator[None]:
    if is_on:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if is_on:
            torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def graphs(options: argparse.Namespace) -> Iterator[str]:
    """Replays every graph on batches that it has not captured, with NaN in the embeddings of unused rows."""
    if not options.device.startswith("cuda"):
        yield "graphs: not on a CPU"
        return
    with collected_warnings() as warnings:
        engine: Any = _engine(options, Variant(options.dtype))
    states = engine._states
    yield f"{'ok' if states._passes else 'FAIL'}: {len(states._passes)} graphs {'; '.join(warnings)}"
    embeddings = engine.backbone.embed_tokens.weight
    poison = 1  # a special token, which random passages do not contain
    embeddings[poison] = torch.nan
    smaller = 0
    for bucket, captured in states._passes.items():
        for num_tokens in (bucket, smaller + 1):  # the most and the fewest tokens for which this graph is used
            captured.inputs.token_ids.fill_(poison)
            packed = pack(_sequences(options, num_tokens), engine.device)
            found, expected = states(packed).float(), states._run(packed).float()
            error = float(((found - expected).abs().amax(1) / expected.abs().amax(1)).max())
            yield verdict(f"graph of {bucket} tokens, {num_tokens} used", error, _GRAPH_TOLERANCE)
        smaller = bucket


def _sequences(options: argparse.Namespace, num_tokens: int) -> list[np.ndarray]:
    """Sequences of different lengths with `num_tokens` tokens in total."""
    lengths: list[int] = []
    while (left := num_tokens - sum(lengths)) > 0:
        lengths.append(min(left, 97 + 61 * len(lengths) % 300))
    pairs = draw_pairs(_checkpoint(options), 512, 64)
    return [pairs[number % 64].token_ids[:length] for number, length in enumerate(lengths)]


def memory(options: argparse.Namespace) -> Iterator[str]:
    """A batch larger than the memory is halved until it fits, and later batches still have the same logits."""
    if not options.device.startswith("cuda"):
        yield "memory: not on a CPU"
        return
    engine = _engine(options, Variant(options.dtype, is_compiled=False, has_graphs=False))
    length = min(2048, window(_checkpoint(options)))
    few = draw_pairs(_checkpoint(options), length, 4)
    before, memory_tokens = engine.score(few), engine.memory_tokens or 0
    count = int(1.6 * memory_tokens) // length  # memory_tokens leaves a fifth of the memory free
    with collected_warnings() as warnings:
        logits = engine.score(_repeated(few, count))
    yield f"{'ok' if len(logits) == count and warnings else 'FAIL'}: {count} pairs; {len(warnings)} warnings"
    yield f"ok: memory_tokens {memory_tokens} before, {engine.memory_tokens} after"
    yield verdict(
        "logits after running out of memory", float(np.abs(np.subtract(engine.score(few), before)).max()), 0.02
    )


def _repeated(pairs: Sequence[EncodedPair], count: int) -> list[EncodedPair]:
    return [pairs[number % len(pairs)] for number in range(count)]


def lost(options: argparse.Namespace) -> Iterator[str]:
    """A token id outside the vocabulary: a device assert on a GPU. Every pass must then report a lost device."""
    engine = _engine(options, Variant(options.dtype, is_compiled=False, has_graphs=False))
    (good,) = draw_pairs(_checkpoint(options), 32, 1)
    bad = EncodedPair(np.full(32, 10_000_000, np.int32), 32, is_truncated=False)
    expected: type[Exception] = DeviceFailed if options.device.startswith("cuda") else IndexError
    for name, pair in (("the pass with the error", bad), ("a later pass", good)):
        try:
            engine.score([pair])
        except expected as problem:
            yield f"ok: {name}: {type(problem).__name__}: {str(problem)[:120]}"
        except Exception as problem:  # any other error is reported
            yield f"FAIL: {name}: {type(problem).__name__}: {str(problem)[:120]}"
        else:
            is_fine = expected is IndexError and pair is good  # a CPU goes on
            yield f"{'ok' if is_fine else 'FAIL'}: {name} has a logit"


def _checkpoint(options: argparse.Namespace) -> Path:
    return written(options.checkpoints, options.model, options.device)


def _engine(options: argparse.Namespace, variant: Variant) -> Engine[Any]:
    return load(_checkpoint(options), variant, options.device)


STEPS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "waits": waits,
    "graphs": graphs,
    "memory": memory,
    "lost": lost,
}
