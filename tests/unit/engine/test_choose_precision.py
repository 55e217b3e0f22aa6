"""Which of the allowed precisions is taken, on faked processors with faked speeds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_service.config import Dtype, EngineConfig, EngineKind
from rerank_service.engine import choose_precision as module
from rerank_service.engine import load_engine
from rerank_service.engine.choose_precision import choose_precision
from rerank_service.engine.device.precision import INSTRUCTION_SETS, Precision
from rerank_service.engine.loading import Checkpoint
from rerank_service.engine.protocol import choose_here
from rerank_service.errors import CheckpointError
from rerank_service.messages import Numerics
from tests.models import local_model

BERT, LLAMA = EngineKind.SEQUENCE_CLASSIFIER, EngineKind.BIDIRECTIONAL_DECODER
Speeds = Callable[..., None]


def checkpoint(dtype: Dtype, hidden_size: int = 384) -> Checkpoint:
    options = EngineConfig(dtype=dtype)
    return Checkpoint(Path("/none"), {"hidden_size": hidden_size}, options, None, torch.device("cpu"))


@pytest.fixture
def runs_on(monkeypatch: pytest.MonkeyPatch) -> Speeds:
    """Fakes a processor and the milliseconds that a layer takes on it."""

    def fake(name: str, **milliseconds: float) -> None:
        (found,) = (one for one in INSTRUCTION_SETS if one.name == name)
        flags = dict.fromkeys(found.flags, True)

        def seconds(precisions: Sequence[Precision], hidden_size: int, *, is_decoder: bool) -> tuple[float, ...]:
            return tuple(milliseconds[one.name] / 1000 for one in precisions)

        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: found.in_use[0])
        monkeypatch.setattr(module, "layer_seconds", seconds)

    return fake


@pytest.mark.parametrize(
    ("float32", "bfloat16", "int8", "expected"),
    [
        (30, 20, 10, "int8 with bfloat16 states"),
        (30, 20, 19.5, "bfloat16"),  # a tie goes to the more accurate type
        (30, 20, 19, "int8 with bfloat16 states"),
        (20, 30, 25, "float32"),
        (20, 19.5, 19.4, "float32"),
    ],
)
def test_fastest_takes_what_is_fastest_here(
    runs_on: Speeds, float32: float, bfloat16: float, int8: float, expected: str
) -> None:
    runs_on("AVX512-BF16", float32=float32, bfloat16=bfloat16, int8=int8)

    precision, numerics = choose_precision(checkpoint(Dtype.FASTEST), BERT, choose_here)

    assert str(precision) == expected
    assert numerics.name == f"{expected} on cpu"
    assert f"AVX512-BF16, milliseconds for one layer: float32 {float32:g}" in numerics.reason


@pytest.mark.parametrize(("bfloat16", "expected"), [(10, "bfloat16"), (19.5, "float32"), (25, "float32")])
def test_auto_never_quantises(runs_on: Speeds, bfloat16: float, expected: str) -> None:
    runs_on("AMX", float32=20, bfloat16=bfloat16, int8=1)
    assert str(choose_precision(checkpoint(Dtype.AUTO), BERT, choose_here)[0]) == expected


def test_nothing_is_measured_if_there_is_no_choice(runs_on: Speeds) -> None:
    runs_on("AVX2")  # without speeds, a measurement would fail

    _, auto = choose_precision(checkpoint(Dtype.AUTO), BERT, choose_here)
    _, int8 = choose_precision(checkpoint(Dtype.INT8), BERT, choose_here)

    assert auto.name == "float32 on cpu"
    assert "the only type that dtype auto allows" in auto.reason
    assert int8 == Numerics("int8 with float32 states on cpu", "engine.dtype is int8")


def test_the_size_and_kind_of_the_model_are_measured(monkeypatch: pytest.MonkeyPatch, runs_on: Speeds) -> None:
    runs_on("AVX2")
    asked: list[Any] = []

    def seconds(precisions: Sequence[Precision], hidden_size: int, *, is_decoder: bool) -> tuple[float, ...]:
        asked.append((hidden_size, is_decoder))
        return (2.0, 1.0)

    monkeypatch.setattr(module, "layer_seconds", seconds)
    for kind in (BERT, LLAMA):
        choose_precision(checkpoint(Dtype.FASTEST, 2048), kind, choose_here)
    assert asked == [(2048, False), (2048, True)]


def test_after_a_failed_measurement_the_most_accurate_type_is_used(
    monkeypatch: pytest.MonkeyPatch, runs_on: Speeds, caplog: pytest.LogCaptureFixture
) -> None:
    runs_on("AVX512-BF16")

    def fail(*_: object, **__: object) -> tuple[float, ...]:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(module, "layer_seconds", fail)

    precision, numerics = choose_precision(checkpoint(Dtype.FASTEST), BERT, choose_here)

    assert str(precision) == "float32"
    assert "cannot be measured" in numerics.reason
    assert "no kernel" in caplog.text


def test_an_agreement_overrules_the_own_choice(runs_on: Speeds) -> None:
    runs_on("AVX512-BF16", float32=30, bfloat16=20, int8=10)
    offered: list[str] = []

    def agree(possible: Sequence[str], choose: Callable[[], Numerics]) -> Numerics:
        offered.extend(possible)
        return Numerics("int8 with float32 states on cpu", "another replica chose it")

    precision, numerics = choose_precision(checkpoint(Dtype.FASTEST), BERT, agree)

    assert precision == Precision(torch.float32, Dtype.INT8)
    assert numerics.reason == "another replica chose it"
    assert offered == [
        *("float32 on cpu", "bfloat16 on cpu", "int8 with float32 states on cpu", "int8 with bfloat16 states on cpu")
    ]


def test_an_engine_computes_in_the_agreed_precision(checkpoints: dict[str, Path]) -> None:
    model = local_model(checkpoints["bert"], engine={"dtype": "auto"})
    agreed = Numerics("float32 on cpu", "agreed")

    engine = load_engine(model, agree=lambda possible, choose: agreed)

    assert (engine.precision, engine.numerics) == ("float32", agreed)
    assert "float32" in engine.description


def test_a_refusal_ends_the_load(checkpoints: dict[str, Path]) -> None:
    def refuse(possible: Sequence[str], choose: Callable[[], Numerics]) -> Numerics:
        raise CheckpointError("the others compute in something else")

    with pytest.raises(CheckpointError, match="something else"):
        load_engine(local_model(checkpoints["bert"]), agree=refuse)
