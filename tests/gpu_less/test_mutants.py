"""Puts each fault back that the GPU path once had, and shows that a check of this folder finds it.

A mutant replaces a part of the service with the faulty code of before. The same check passes without the mutant.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.device import cuda, graphs, kernels
from rerank_service.engine.device.compile import CompiledLayers, inductor
from rerank_service.engine.kinds import checkpoint_engine, late_interaction, sequence_classifier
from rerank_service.errors import CheckpointError, DeviceFailed
from tests.gpu_less import operators
from tests.gpu_less.engines import CheckFailed, Run, check, software_gpu
from tests.gpu_less.watch import HostWaited
from tests.models import local_model

Patch = pytest.MonkeyPatch


def passes_later_arguments(patch: Patch) -> None:
    """Fault 1: `enable_gqa` and `num_splits`, which torch 2.11 does not have."""
    patch.setattr(kernels, "attention_kernel", lambda function: with_options(function))


def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **options: function(*args, enable_gqa=True, num_splits=1, **options)


def uses_the_current_device(patch: Patch) -> None:
    """Fault 3: events on the thread's current device, which is the first GPU."""

    def event(device: torch.device) -> torch.cuda.Event:
        recorded = torch.cuda.Event(blocking=True)
        recorded.record()
        return recorded

    patch.setattr(cuda, "current", lambda device: nullcontext())
    patch.setattr(cuda, "recorded_event", event)


def checks_the_captured_batch(patch: Patch) -> None:
    """Fault 4: the check compares a replay with the batch that was captured, and a replay may do nothing."""

    def checked(capture: Any, run: Any, inputs: Any, example: Any) -> Any:
        states = run(inputs)
        return graphs.CapturedPass(inputs, lambda: None, states)

    patch.setattr(graphs, "_checked", checked)


def copies_indices(patch: Patch) -> None:
    """Fault 6, late interaction: lengths and indices as lists."""
    original = late_interaction.LateInteractionEngine.forward

    def forward(self: Any, pairs: Any) -> torch.Tensor:
        logits = original(self, pairs)
        return logits[list(range(len(pairs)))] + torch.tensor([0.0], device=self.device)

    patch.setattr(late_interaction.LateInteractionEngine, "forward", forward)


def copies_from_pageable_memory(patch: Patch) -> None:
    """Fault 6, rectangular classifiers: copies that are neither pinned nor asynchronous."""

    def copied(arrays: list[np.ndarray], device: torch.device) -> list[torch.Tensor]:
        return [torch.from_numpy(array).to(device) for array in arrays]

    patch.setattr(sequence_classifier, "to_device", copied)


def searches_for_padding(patch: Patch) -> None:
    """Fault 6, transformers' `padding_mask.all()`."""
    patch.setattr(sequence_classifier, "PADDED_ATTENTION", "sdpa")


def computes_positions_anew(patch: Patch) -> None:
    """Fault 6, DeBERTa's relative positions."""
    patch.setattr(sequence_classifier, "tabulate_relative_positions", lambda *_: None)


def captures_at_first_use(patch: Patch) -> None:
    """Fault 9: the first batch of a bucket captures its graph, and waits."""
    original, loaded = graphs.GraphedStates.__call__, []

    def call(self: Any, packed: Any) -> torch.Tensor:
        if loaded and not self.buckets:
            self.capture_all([256], 512, lambda run: run())
        return original(self, packed)

    patch.setattr(checkpoint_engine.CheckpointEngine, "capture_graphs", lambda *_: None)
    patch.setattr(checkpoint_engine.CheckpointEngine, "end_start", lambda _: loaded.append(True))
    patch.setattr(graphs.GraphedStates, "__call__", call)


def spins_while_waiting(patch: Patch) -> None:
    """Fault 11: an event for which the waiting thread occupies a core."""

    def event(device: torch.device) -> torch.cuda.Event:
        recorded = torch.cuda.Event()
        recorded.record(torch.cuda.current_stream(device))
        return recorded

    patch.setattr(cuda, "recorded_event", event)


MUTANTS = [
    (passes_later_arguments, Run("llama_bidirec", release="2.11.0"), TypeError),
    (uses_the_current_device, Run("llama_bidirec", device=1), CheckpointError),  # garbage, when it warms up
    (checks_the_captured_batch, Run("llama_bidirec", way="graphed"), CheckFailed),
    (copies_indices, Run("late_interaction"), HostWaited),
    (copies_from_pageable_memory, Run("modernbert"), HostWaited),
    (searches_for_padding, Run("modernbert"), HostWaited),
    (computes_positions_anew, Run("deberta_v2"), HostWaited),
    (captures_at_first_use, Run("llama_bidirec", way="graphed"), HostWaited),
    (spins_while_waiting, Run("llama_bidirec"), AssertionError),
]


def _name(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.mark.parametrize(("mutate", "run", "found"), MUTANTS, ids=_name)
def test_a_pass_with_the_fault_fails_its_check(
    monkeypatch: Patch,
    caplog: pytest.LogCaptureFixture,
    checkpoints: dict[str, Path],
    mutate: Callable[[Patch], None],
    run: Run,
    found: type[BaseException],
) -> None:
    with monkeypatch.context() as patch:
        mutate(patch)
        with pytest.raises(found):
            check(monkeypatch, caplog, checkpoints, run)


def load(folder: Path, **settings: Any) -> Any:
    return load_engine(local_model(folder, engine={"device": "cuda:0", "dtype": "bfloat16", **settings}))


def score(engine: Any) -> list[float]:
    pairs = engine.tokenise("which animal", ["the fox", "a lazy dog", "fox " * 30, "Paris"], Truncate.END)
    scored: list[float] = engine.score(pairs)
    return scored


def a_lost_device_is_reported(monkeypatch: Patch, folder: Path) -> None:
    with software_gpu(monkeypatch, Run("bert")) as gpu:
        engine = load(folder)
        gpu.runtime.broken = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        with pytest.raises(DeviceFailed):
            score(engine)


def a_batch_is_halved(monkeypatch: Patch, folder: Path) -> None:
    with software_gpu(monkeypatch, Run("bert")) as gpu:
        engine = load(folder)
        expected, memory = score(engine), gpu.runtime.memory
        memory.peak = memory.allocated
        score(engine)
        needed = memory.peak - memory.allocated
        for exhausted in (
            torch.OutOfMemoryError,
            lambda _: torch.AcceleratorError("CUDA error: out of memory"),
            lambda _: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ):
            memory.capacity, memory.exhausted = memory.allocated + needed * 3 // 4, exhausted
            assert score(engine) == pytest.approx(expected, abs=0.05)
            assert engine.memory_tokens < 110  # three quarters of the batch


def a_cache_takes_memory_from_batches(monkeypatch: Patch, folder: Path) -> None:
    cache_bytes = 60 * 2**30
    found = []
    for settings in ({}, {"passage_cache_bytes": cache_bytes}):
        with software_gpu(monkeypatch, Run("late_interaction")):
            engine = load(folder, kind="late_interaction", **settings)
            found.append(engine.memory_tokens)
    assert found[1] == pytest.approx(found[0] * 20 / 80, rel=0.1)


def float8_needs_the_product(monkeypatch: Patch, folder: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Rowwise scaling is not currently supported on your device")

    with monkeypatch.context() as patch, software_gpu(monkeypatch, Run("bert"), capability=(12, 0)):
        patch.setitem(operators.OPERATORS, torch.ops.aten._scaled_mm.default, refuse)
        with pytest.raises(CheckpointError, match="set dtype: bfloat16"):
            load(folder, dtype="float8")


def layers_run_without_a_compiler(monkeypatch: Patch, folder: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    with software_gpu(monkeypatch, Run("bert")), monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch._inductor.compile_fx", SimpleNamespace(compile_fx=fail))
        engine = load(folder)
        assert not engine.is_compiled
        score(engine)


def forgets_the_class_of_errors(patch: Patch) -> None:
    """Fault 5: an error that loses the device looks like any other."""
    patch.setattr(cuda, "is_final", lambda _: False)


def knows_one_class_of_exhaustion(patch: Patch) -> None:
    """Fault 11: only torch's allocator reports exhausted memory."""
    patch.setattr(cuda, "is_out_of_memory", lambda error: isinstance(error, torch.OutOfMemoryError))


def measures_with_caches(patch: Patch) -> None:
    """Fault 7: the second probe finds all of its passages in the cache, whose memory is not deducted."""
    patch.setattr(late_interaction.LateInteractionEngine, "caches_off", lambda _: nullcontext())
    patch.setattr(late_interaction.LateInteractionEngine, "cache_bytes", 0)


def infers_from_the_capability(patch: Patch) -> None:
    """Fault 10: a GPU above compute capability 8.9 is taken to have the product."""
    patch.setattr(kernels, "_probe_float8", lambda _: None)


def compiles_without_falling_back(patch: Patch) -> None:
    """Fault 8: layers whose compilation fails stay attached."""

    def compile_layers(model: Any, *_: Any) -> Any:
        layers = CompiledLayers(model, inductor)
        layers.attach()
        return layers

    patch.setattr(checkpoint_engine, "compile_layers", compile_layers)


LOADING_MUTANTS = [
    (a_lost_device_is_reported, forgets_the_class_of_errors, "bert", torch.AcceleratorError),
    (a_cache_takes_memory_from_batches, measures_with_caches, "late_interaction", AssertionError),
    (layers_run_without_a_compiler, compiles_without_falling_back, "bert", Exception),
    (float8_needs_the_product, infers_from_the_capability, "bert", AssertionError),
    (a_batch_is_halved, knows_one_class_of_exhaustion, "bert", RuntimeError),
]


@pytest.mark.parametrize(
    ("holds", "mutate", "model", "found"), LOADING_MUTANTS, ids=lambda v: getattr(v, "__name__", "")
)
def test_an_engine_with_the_fault_fails_its_check(
    monkeypatch: Patch,
    checkpoints: dict[str, Path],
    holds: Callable[[Patch, Path], None],
    mutate: Callable[[Patch], None],
    model: str,
    found: type[BaseException],
) -> None:
    holds(monkeypatch, checkpoints[model])
    with monkeypatch.context() as patch:
        mutate(patch)
        with pytest.raises(found):
            holds(monkeypatch, checkpoints[model])
