"""Loads engines on a software GPU and checks everything that must hold for a pass.

To add a path (an engine, a family, a way to run layers): add one row to `MODELS` or `WAYS`. `test_engines.py` then runs
it in every precision, and `test_mutants.py` shows that the checks find the faults.
"""

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from rerank_service.engine import Truncate, build, device, load_engine
from rerank_service.engine.device import cuda, kernels, memory
from rerank_service.engine.kinds import checkpoint_engine
from tests.fake_cuda import FakeCuda
from tests.gpu_less.releases import TORCH_RELEASES, varlen_attn_of
from tests.gpu_less.tensors import SoftwareGpu
from tests.models import local_model

__all__ = ["MODELS", "RECTANGULAR", "TOLERANCES", "WAYS", "CheckFailed", "Run", "check", "installed", "software_gpu"]

MODELS: dict[str, dict[str, Any]] = {
    "llama_bidirec": {},
    "mistral": {},
    "bert": {},
    "xlm_roberta": {},
    "modernbert": {},
    "deberta_v2": {},
    "qwen3": {},
    "gte": {},
    "minicpm": {},
    "late_interaction": {"kind": "late_interaction", "passage_cache_bytes": 1_000_000},
    "colbert": {"passage_cache_bytes": 1_000_000},
    # The sum over 48 query tokens would add up as many roundings.
    "colbert_modernbert": {"head": {"cosine_weight": 0, "maxsim_weight": 10, "bias": 0}},
}
"""Checkpoints of the fixture `checkpoints`, and the settings of their engines."""

WAYS: dict[str, dict[str, Any]] = {
    "eager": {"compile": False, "cuda_graphs": False},
    "compiled": {"compile": None, "cuda_graphs": False},
    "graphed": {"compile": False, "cuda_graphs": True},
}
"""Settings of an engine's layers. Inductor needs a GPU, so `compiled` traces layers and runs the traced operators. The
families in `RECTANGULAR` have neither compiled layers nor graphs."""

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.12, "float16": 0.03, "float8": 0.4}
"""Largest difference of a logit from a CPU's; the logits of these checkpoints spread over several units."""

RECTANGULAR = {"modernbert", "deberta_v2"}
"""Models that do not run packed."""

UNCOMPILED = {"colbert", "colbert_modernbert"}
"""Packed models whose layers are not compiled, because not all layers or batches see the same tokens."""

_QUERY = "which animal jumps"
_PASSAGES = [
    "the quick brown fox jumps over the lazy dog",
    "a",
    "Paris is the capital of France. " * 6,
    "東京は日本の首都です",
    "fox " * 20,
]
_BATCHES = ([0], [0, 1, 2, 3, 4], [1], [3, 2], [4, 4, 0], [2, 1, 0])
"""Passages of each batch, in the order in which the batches are launched."""


class CheckFailed(AssertionError):
    """A pass on the software GPU did something that must not happen."""


class Run(NamedTuple):
    """What to run."""

    model: str
    dtype: str = "bfloat16"
    way: str = "eager"
    release: str = "2.13.0"
    """Release of torch whose kernels are called."""
    device: int = 0


@contextmanager
def software_gpu(monkeypatch: pytest.MonkeyPatch, run: Run, **options: Any) -> Iterator[SoftwareGpu]:
    """A machine with two GPUs of which `run` uses one, and the kernels of a release of torch."""
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "num_visible", lambda: 2)
        patch.setattr(build, "_num_threads", lambda _: 1)  # threads would wait for each other longer than they compute
        patch.setattr(memory, "_PROBE_TOKENS", 384)  # the probe's size does not matter here, and it takes long
        patch.setattr(checkpoint_engine, "bucket_sizes", lambda _: [64, 128, 256])  # in reality, dozens
        patch.setattr(checkpoint_engine, "compiler_problem", lambda _: None)
        patch.setattr(checkpoint_engine, "prepare_compiler", lambda *_: None)  # sets folders for the whole process
        inductor = SimpleNamespace(compile_fx=lambda graph, inputs: graph.forward)  # runs a graph as it was traced
        patch.setitem(sys.modules, "torch._inductor.compile_fx", inductor)
        installed(patch, run.release)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with SoftwareGpu(FakeCuda(patch, **options)) as gpu:
                yield gpu
        finally:
            torch.set_num_threads(num_threads)


def installed(patch: pytest.MonkeyPatch, release: str) -> None:
    """Makes engines call the attention kernel of a release of torch."""
    stub = varlen_attn_of(release)
    patch.setattr(kernels, "varlen_attn", stub)
    patch.setattr(kernels, "variable_length_kernel", kernels.attention_kernel(stub))


def check(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, checkpoints: dict[str, Path], run: Run
) -> None:
    """Runs several batches. No pass may wait for the device, every logit must be the CPU's, and no feature that `run`
    asks for may turn itself off."""
    settings = {**MODELS[run.model], **WAYS[run.way]}
    exact = "float8" if run.dtype == "float8" else "float32"  # rounding to 8 bits would hide other differences
    pairs, expected = _on_a_cpu(checkpoints[run.model], run.model, exact)
    with software_gpu(monkeypatch, run) as gpu, caplog.at_level(logging.WARNING):
        engine: Any = load_engine(
            local_model(checkpoints[run.model], engine={**settings, "device": f"cuda:{run.device}", "dtype": run.dtype})
        )
        for batch in _BATCHES:
            with gpu.watching():
                pending = engine.launch([pairs[index] for index in batch])
            _compare(pending.wait(), [expected[index] for index in batch], TOLERANCES[run.dtype])
        _check_way(gpu, engine, run, caplog)


@cache
def _on_a_cpu(checkpoint: Path, model: str, dtype: str) -> tuple[list[Any], list[float]]:
    """The pairs of a test, and their logits on a CPU."""
    engine: Any = load_engine(local_model(checkpoint, engine={**MODELS[model], "dtype": dtype}))
    pairs = engine.tokenise(_QUERY, _PASSAGES, Truncate.END)
    return pairs, engine.score(pairs)


def _compare(found: Sequence[float], expected: Sequence[float], tolerance: float) -> None:
    differences = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    if not all(difference <= tolerance for difference in differences):  # also finds NaN
        raise CheckFailed(f"logits {found} differ from {expected} by up to {max(differences, key=_nan_last)}")


def _nan_last(number: float) -> float:
    return math.inf if math.isnan(number) else number


def _check_way(gpu: SoftwareGpu, engine: Any, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith(device.__name__)]
    if warnings:  # of a graph or a layer that turned itself off, or of halved batches
        raise CheckFailed(f"{run.way}: {warnings}")
    if run.model in RECTANGULAR:
        return
    if run.way == "graphed" and gpu.runtime.num_replays < len(_BATCHES):
        raise CheckFailed(f"only {gpu.runtime.num_replays} replays in {len(_BATCHES)} batches")
    if run.way == "compiled" and run.model in UNCOMPILED:
        if engine.is_compiled:
            raise CheckFailed("layers are compiled that would be compiled again for other batches")
        return
    if run.way == "compiled" and (not engine.is_compiled or torch._dynamo.utils.counters["graph_break"]):
        raise CheckFailed(f"layers are not compiled as a whole: {dict(torch._dynamo.utils.counters)}")


assert Run._field_defaults["release"] in TORCH_RELEASES
