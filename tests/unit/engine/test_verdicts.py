"""Records that allow float8: which of them the engine trusts, and what it does without one."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rerank_service import __version__
from rerank_service.checkpoints.verification import MANIFEST_FILE
from rerank_service.config import Dtype, EngineConfig, EngineKind
from rerank_service.engine import choose_precision, verdicts
from rerank_service.engine.device import cuda
from rerank_service.engine.loading import Checkpoint
from rerank_service.engine.protocol import choose_here
from rerank_service.engine.verdicts import (
    Float8Verdict,
    checkpoint_digest,
    current_verdict,
    verdict_path,
    verified_dtype,
    write_verdict,
)

GPU = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints["llama_bidirec"], tmp_path / "checkpoint"))


@pytest.fixture
def options(tmp_path: Path) -> EngineConfig:
    return EngineConfig(verdicts=str(tmp_path / "verdicts"))


def record(folder: Path, **changes: object) -> Float8Verdict:
    facts = {
        "checkpoint": checkpoint_digest(folder),
        "gpu": GPU,
        "torch": torch.__version__,
        "service": __version__,
        "is_accepted": True,
        "largest_difference": 0.08,
        "allowed": 0.15,
        "kendall_tau": 0.98,
        "num_pairs": 32,
        "recorded_at": "2026-11-26T07:00:00+00:00",
    }
    return Float8Verdict.model_validate(facts | changes)


def test_an_accepted_checkpoint_runs_in_float8(folder: Path, options: EngineConfig) -> None:
    assert verified_dtype(options, folder, GPU) is Dtype.AUTO
    path = write_verdict(options, record(folder))

    assert verified_dtype(options, folder, GPU) is Dtype.FLOAT8
    assert path.parent == Path(str(options.verdicts))
    assert json.loads(path.read_text())["largest_difference"] == 0.08
    assert list(path.parent.iterdir()) == [path]  # nothing unfinished


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": "0" * 64},
        {"gpu": "NVIDIA L40S"},
        {"torch": "2.0.0"},
        {"service": "0.0.0"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_record_for_something_else_is_not_trusted(
    folder: Path, options: EngineConfig, changes: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_verdict(options, record(folder, **changes))
    path.replace(verdict_path(options, checkpoint_digest(folder), GPU))  # even under the right name

    with caplog.at_level(logging.WARNING):
        assert current_verdict(options, folder, GPU) is None
    assert "is ignored" in caplog.text


def test_a_refused_checkpoint_keeps_its_precision(folder: Path, options: EngineConfig) -> None:
    write_verdict(options, record(folder, is_accepted=False))
    assert verified_dtype(options, folder, GPU) is Dtype.AUTO
    fastest = options.model_copy(update={"dtype": Dtype.FASTEST})
    assert verified_dtype(fastest, folder, GPU) is Dtype.FASTEST


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"is_accepted": true}'])
def test_an_unreadable_record_is_ignored(
    folder: Path, options: EngineConfig, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_verdict(options, record(folder))
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert verified_dtype(options, folder, GPU) is Dtype.AUTO
    assert str(path) in caplog.text


def change_a_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_the_pooling(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pooling": "cls"}))


@pytest.mark.parametrize("change", [change_a_weight, change_the_pooling])
def test_a_changed_checkpoint_needs_a_new_record(
    folder: Path, options: EngineConfig, change: Callable[[Path], None]
) -> None:
    write_verdict(options, record(folder))
    change(folder)
    assert verified_dtype(options, folder, GPU) is Dtype.AUTO


def test_the_manifest_of_a_fetch_does_not_change_the_digest(folder: Path) -> None:
    before = checkpoint_digest(folder)
    (folder / MANIFEST_FILE).write_text("{}")
    assert checkpoint_digest(folder) == before


def test_records_are_in_the_cache_of_checkpoints_by_default(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_SERVICE_CACHE", str(tmp_path / "cache"))
    assert write_verdict(EngineConfig(), record(folder)).parent == tmp_path / "cache/verdicts"


@pytest.mark.parametrize(
    ("settings", "problem", "expected"),
    [
        ({}, None, Dtype.FLOAT8),
        ({"dtype": "fastest"}, None, Dtype.FLOAT8),
        ({"dtype": "bfloat16"}, None, None),
        ({"compile": False}, None, None),
        ({}, "the package triton is not installed", None),
    ],
    ids=["auto", "fastest", "bfloat16 is configured", "not compiled", "no compiler"],
)
def test_float8_is_taken_only_if_it_may_and_can_be_compiled(
    folder: Path,
    options: EngineConfig,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    problem: str | None,
    expected: Dtype | None,
) -> None:
    write_verdict(options, record(folder))
    monkeypatch.setattr(cuda, "name", lambda device: GPU)
    monkeypatch.setattr(choose_precision, "compiler_problem", lambda device: problem)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    chosen = EngineConfig.model_validate(options.model_dump() | settings)
    checkpoint = Checkpoint(folder, {}, chosen, None, torch.device("cuda", 0))

    precision, _ = choose_precision.choose_precision(checkpoint, EngineKind.SEQUENCE_CLASSIFIER, choose_here)
    assert (precision.states, precision.quantised) == (torch.bfloat16, expected)


def test_a_cpu_reads_no_record(folder: Path, options: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(verdicts, "current_verdict", refuse)
    checkpoint = Checkpoint(folder, {}, options, None, torch.device("cpu"))
    precision, _ = choose_precision.choose_precision(checkpoint, EngineKind.SEQUENCE_CLASSIFIER, choose_here)
    assert precision.quantised is None
