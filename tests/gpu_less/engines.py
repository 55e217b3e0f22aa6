"""Loads engines on a software GPU and checks everything that must hold for a pass.

To add a path (an engine, a family, a way to run layers): add one row to `MODELS` or `WAYS`. `test_engines.py` then runs
it in every precision, and `test_mutants.py` shows that the checks find the faults.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from rerank_service.engine import Truncate, load_engine, loading
from rerank_service.engine.device import kernels, memory
from tests.fake_cuda import FakeCuda
from tests.gpu_less.releases import TORCH_RELEASES, varlen_attn_of
from tests.gpu_less.tensors import SoftwareGpu
from tests.models import local_model

__all__ = ["MODELS", "TOLERANCES", "WAYS", "CheckFailed", "Run", "check", "installed", "software_gpu"]

MODELS: dict[str, dict[str, Any]] = {
    "llama_bidirec": {},
    "mistral": {},
    "bert": {},
    "xlm_roberta": {},
    "modernbert": {},
    "deberta_v2": {},
    "qwen3": {},
    "late_interaction": {"kind": "late_interaction", "passage_cache_bytes": 1_000_000},
}
"""Checkpoints of the fixture `checkpoints`, and the settings of their engines."""

WAYS: dict[str, dict[str, Any]] = {
    "eager": {"compile": False, "cuda_graphs": False},
    "compiled": {"compile": True, "cuda_graphs": False},
    "graphed": {"compile": False, "cuda_graphs": True},
}
"""Settings of an engine's layers. Inductor needs a GPU, so `compiled` traces layers and runs the traced operators."""

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.12, "float16": 0.03, "float8": 0.4}
"""Largest difference of a logit from a CPU's; the logits of these checkpoints spread over several units."""

_UNGRAPHED = {"modernbert", "deberta_v2"}
"""Families that run in rectangles, for which there are no graphs."""

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
        patch.setattr(loading, "resolve_device", lambda name: torch.device(name))
        patch.setattr(memory, "_PROBE_TOKENS", 768)  # the probe's size does not matter here, and it takes long
        patch.setattr(torch, "compile", partial(_traced, torch.compile))
        installed(patch, run.release)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        with SoftwareGpu(FakeCuda(patch, **options)) as gpu:
            yield gpu


def _traced(compile_function: Any, function: Any, *_: Any, dynamic: bool | None = None, **__: Any) -> Any:
    return compile_function(function, backend="eager", dynamic=dynamic)


def installed(patch: pytest.MonkeyPatch, release: str) -> None:
    """Makes engines call the attention kernel of a release of torch."""
    stub = varlen_attn_of(release)
    patch.setattr(kernels, "varlen_attn", stub)
    patch.setattr(kernels, "variable_length_kernel", kernels.attention_kernel(stub))


def check(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, checkpoints: dict[str, Path], run: Run
) -> None:
    """Runs several batches. No pass may wait for the device, every logit must be the CPU's, and the way that `run` asks
    for must not turn itself off."""
    settings = {**MODELS[run.model], **WAYS[run.way]}
    exact = "float8" if run.dtype == "float8" else "float32"  # rounding to 8 bits would hide other differences
    cpu: Any = load_engine(local_model(checkpoints[run.model], engine={**MODELS[run.model], "dtype": exact}))
    pairs = cpu.tokenise(_QUERY, _PASSAGES, Truncate.END)
    expected = cpu.score(pairs)
    with software_gpu(monkeypatch, run) as gpu, caplog.at_level(logging.WARNING):
        engine: Any = load_engine(
            local_model(checkpoints[run.model], engine={**settings, "device": f"cuda:{run.device}", "dtype": run.dtype})
        )
        if run.way == "graphed":
            for batch in _BATCHES:  # the first batch of a bucket captures its graph, which waits for the device
                engine.score([pairs[index] for index in batch])
        for batch in _BATCHES:
            with gpu.watching():
                pending = engine.launch([pairs[index] for index in batch])
            _compare(pending.wait(), [expected[index] for index in batch], TOLERANCES[run.dtype])
        _check_way(gpu, run, caplog)


def _compare(found: Sequence[float], expected: Sequence[float], tolerance: float) -> None:
    differences = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    if not all(difference <= tolerance for difference in differences):  # also finds NaN
        raise CheckFailed(f"logits {found} differ from {expected} by up to {max(differences, key=_nan_last)}")


def _nan_last(number: float) -> float:
    return math.inf if math.isnan(number) else number


def _check_way(gpu: SoftwareGpu, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    if off := [record.getMessage() for record in caplog.records if "turned off" in record.getMessage()]:
        raise CheckFailed(f"{run.way}: {off}")
    if run.way == "graphed" and run.model not in _UNGRAPHED and gpu.runtime.num_replays < len(_BATCHES):
        raise CheckFailed(f"only {gpu.runtime.num_replays} replays in {len(_BATCHES)} batches")
    counters = torch._dynamo.utils.counters
    if run.way == "compiled" and (counters["graph_break"] or not counters["stats"]["unique_graphs"]):
        raise CheckFailed(f"layers are not compiled as a whole: {dict(counters)}")


assert Run._field_defaults["release"] in TORCH_RELEASES
