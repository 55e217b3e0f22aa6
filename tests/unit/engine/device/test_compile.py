"""Compiled layers: one compilation for all batches, the checks of their states, and the ways back to plain layers."""

import gc
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rerank_service.config import Dtype, EngineConfig
from rerank_service.engine.device import compile as compiling
from rerank_service.engine.device.compile import (
    Backend,
    CompiledLayers,
    batch_like,
    compile_layers,
    compiler_problem,
    prepare_compiler,
    wants_compile,
)
from rerank_service.engine.device.forward import PACKED_ATTENTION, PACKED_CAUSAL_ATTENTION, hidden_states
from rerank_service.engine.device.pack import PackedSequences, pack
from rerank_service.engine.device.precision import Precision
from rerank_service.engine.linear import prepare
from tests.unit.engine.device.test_forward import attention_on_a_gpu, load_backbone, random_batch

GPU = torch.device("cuda", 0)
HALF, SINGLE = Precision(torch.bfloat16), Precision(torch.float32)
FLOAT8 = Precision(torch.bfloat16, Dtype.FLOAT8)


@pytest.fixture(autouse=True)
def as_in_a_launch() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.inference_mode():
        yield


@pytest.fixture
def gpu_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes models attend as on a GPU, but with a CPU kernel."""
    for name, sees_later in ((PACKED_ATTENTION, True), (PACKED_CAUSAL_ATTENTION, False)):
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, name, partial(attention_on_a_gpu, sees_later=sees_later))
    monkeypatch.setattr(prepare, "replace_encoder_layers", lambda _, **__: None)  # only a CPU has these layers


def as_traced(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> Callable[..., Any]:
    return graph.forward


def without_a_compiler(_: torch.fx.GraphModule, __: Sequence[torch.Tensor]) -> Callable[..., Any]:
    raise RuntimeError("stdlib.h: No such file or directory")


def wrongly(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> Callable[..., Any]:
    return lambda *inputs: tuple(output.flip(-1) for output in graph.forward(*inputs))


def compiled_llama(width: int, backend: Backend) -> tuple[Any, CompiledLayers | None]:
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config._attn_implementation = PACKED_ATTENTION
    with torch.inference_mode(False):
        model = LlamaModel(config).eval().requires_grad_(False)
    example = random_batch(np.random.default_rng(7))
    return model, compile_layers(model, partial(hidden_states, model), example, 64, backend)


def compiled(folder: Path, backend: Backend) -> tuple[Any, CompiledLayers | None]:
    model = load_backbone(folder)
    example = random_batch(np.random.default_rng(7))
    return model, compile_layers(model, partial(hidden_states, model), example, 64, backend)


@pytest.mark.parametrize("name", ["llama_bidirec", "mistral", "qwen3", "bert", "xlm_roberta"])
def test_one_compilation_serves_every_batch(
    checkpoints: dict[str, Path],
    name: str,
    request: pytest.FixtureRequest,
) -> None:
    request.getfixturevalue("gpu_path")
    rng = np.random.default_rng(0)
    batches = [random_batch(rng) for _ in range(12)]
    plain = load_backbone(checkpoints[name])
    expected = [hidden_states(plain, packed) for packed in batches]

    model, layers = compiled(checkpoints[name], as_traced)
    assert layers is not None
    assert layers.num_graphs == 1
    layers.seal()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for packed, states in zip(batches, expected, strict=True):
            torch.testing.assert_close(hidden_states(model, packed), states, atol=1e-5, rtol=1e-5)
    assert layers.num_graphs == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(
    ("backend", "reason"), [(without_a_compiler, "stdlib.h: No such file"), (wrongly, "change the states")]
)
def test_layers_that_cannot_be_compiled_run_as_before(
    checkpoints: dict[str, Path],
    backend: Backend,
    reason: str,
    gpu_path: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        model, layers = compiled(checkpoints["llama_bidirec"], backend)

    assert layers is None
    assert "layers are not compiled" in caplog.text
    assert reason in caplog.text
    packed = random_batch(np.random.default_rng(1))
    expected = hidden_states(load_backbone(checkpoints["llama_bidirec"]), packed)
    assert torch.equal(hidden_states(model, packed), expected)


def test_a_compiler_that_loses_the_device_is_an_error(checkpoints: dict[str, Path], gpu_path: None) -> None:
    def lose(_: torch.fx.GraphModule, __: Sequence[torch.Tensor]) -> Callable[..., Any]:
        def run(*_: torch.Tensor) -> None:
            raise RuntimeError("CUDA error: device-side assert triggered")

        return run

    with pytest.raises(RuntimeError, match="device-side assert"):
        compiled(checkpoints["llama_bidirec"], lose)


def test_nothing_is_compiled_after_the_start(
    checkpoints: dict[str, Path],
    gpu_path: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[int] = []

    def counted(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., Any]:
        calls.append(len(inputs))
        return graph.forward

    model, layers = compiled(checkpoints["llama_bidirec"], counted)
    assert layers is not None
    layers.seal()
    packed = random_batch(np.random.default_rng(1))
    expected = hidden_states(model, packed)
    with caplog.at_level(logging.WARNING), torch.inference_mode(False), torch.no_grad():  # another variant for torch
        assert torch.equal(hidden_states(model, packed), expected)

    assert len(calls) == 1
    assert layers.num_graphs == 2
    assert "not compiled at start" in caplog.text


def test_models_of_many_architectures_keep_their_compiled_layers(gpu_path: None) -> None:
    """torch allows eight variants of a function by default, and all layers are variants of one function."""
    packed, loaded = random_batch(np.random.default_rng(1)), []
    for width in range(16, 16 + 4 * 10, 4):
        loaded.append(compiled_llama(width, as_traced))
    for model, layers in loaded:
        hidden_states(model, packed)
        assert layers is not None
        assert layers.num_graphs == 1


def test_a_model_that_is_loaded_again_and_again_stays_compiled(gpu_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., Any]:
        calls.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(compiling, "_SHARED_LIMIT", 2)
    with torch._dynamo.config.patch(recompile_limit=2):
        for _ in range(5):
            model, layers = compiled_llama(16, counted)
            assert layers is not None
            loaded = weakref.ref(model)
            del model
            gc.collect()
            assert loaded() is None  # torch keeps the compiled code, but not the weights
    assert len(calls) == 1


def test_layers_that_torch_does_not_compile_any_more_are_not_called_compiled(
    gpu_path: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_SHARED_LIMIT", 2)
    with torch._dynamo.config.patch(recompile_limit=2):
        found = [compiled_llama(width, as_traced)[1] for width in (16, 20, 24)]

    assert [layers is not None for layers in found] == [True, True, False]
    assert "layers are not compiled: FailOnRecompileLimitHit" in caplog.text


@pytest.mark.parametrize("lengths", [[3], [1, 1, 1], [40, 2, 17]])
@pytest.mark.parametrize("first_position", [0, 2])
def test_a_batch_like_another_has_its_types_and_first_position(lengths: list[int], first_position: int) -> None:
    def make(lengths: list[int], types: bool) -> PackedSequences:
        tokens = [np.arange(5, 5 + length, dtype=np.int32) for length in lengths]
        type_ids = [np.ones(length, np.int32) for length in lengths] if types else None
        return pack(tokens, torch.device("cpu"), type_ids=type_ids, first_position=first_position)

    for types in (False, True):
        made, expected = batch_like(make([4, 9], types), lengths), make(lengths, types)
        assert (made.bounds, made.max_length) == (expected.bounds, expected.max_length)
        for name in ("position_ids", "lengths", "cu_seqlens", "type_ids"):
            one, other = getattr(made, name), getattr(expected, name)
            assert (one is None and other is None) or torch.equal(one, other), name
        assert made.token_ids.shape == expected.token_ids.shape


@pytest.mark.parametrize(
    ("setting", "precision", "is_packed", "expected"),
    [
        (None, HALF, True, True),
        (None, FLOAT8, True, True),
        (None, SINGLE, True, False),
        (None, HALF, False, False),
        (True, SINGLE, False, True),
        (False, FLOAT8, True, False),
    ],
)
def test_layers_are_compiled_by_default_in_half_precision_and_float8(
    setting: bool | None, precision: Precision, is_packed: bool, expected: bool
) -> None:
    assert wants_compile(EngineConfig(compile=setting), precision, is_packed=is_packed) is expected


def test_the_reason_why_nothing_can_be_compiled_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    assert compiler_problem(GPU) == "the package triton is not installed"

    monkeypatch.setattr(compiling, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "compute capability 7.0" in str(compiler_problem(GPU))

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install gcc and libc6-dev" in str(compiler_problem(GPU))

    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "no Python.h" in str(compiler_problem(GPU))

    (tmp_path / "Python.h").write_text("")
    assert compiler_problem(GPU) is None


def test_the_compiler_uses_the_replicas_cpus_and_a_private_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("RERANK_SERVICE_KERNELS", str(tmp_path / "kernels"))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, "")  # so that the fixture restores what the test sets
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")

    with config.patch(compile_threads=1):
        folder = prepare_compiler(GPU, 3)
        assert config.compile_threads == 3
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "inductor")
    with config.patch(compile_threads=1):
        monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "8")  # as the operator wishes
        prepare_compiler(GPU, 3)
        assert config.compile_threads == 1


@pytest.mark.filterwarnings("ignore")  # torch uses what torch has deprecated
def test_inductor_stores_what_it_compiles_in_the_private_folder(
    gpu_path: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With torch's own compiler, for a CPU."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
    )
    config._attn_implementation = PACKED_ATTENTION
    torch.manual_seed(0)
    with torch.inference_mode(False):
        model = LlamaModel(config).eval().requires_grad_(False)
    run, rng = partial(hidden_states, model), np.random.default_rng(0)
    batches = [random_batch(rng) for _ in range(4)]
    expected = [run(packed) for packed in batches]
    layers = compile_layers(model, run, batches[0], 64)

    assert layers is not None
    for packed, states in zip(batches, expected, strict=True):
        torch.testing.assert_close(run(packed), states, atol=1e-4, rtol=1e-4)
    assert layers.num_graphs == 1
    assert list(tmp_path.rglob("*.so"))
