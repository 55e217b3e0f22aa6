"""The GPU benchmark and its steps on a software GPU: the branches that a CPU does not reach."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.on_gpu import engine_steps, kernel_steps, limits, measure, session, timing_steps
from benchmarks.on_gpu.plan import Variant
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from tests.gpu_less.engines import Run, software_gpu


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the checkpoints, because the software GPU draws no random numbers."""
    folder = tmp_path_factory.mktemp("drawn")
    make_checkpoint(folder / "tiny-drawn-on-cuda", Architecture.LLAMA_BIDIREC, "tiny")
    return folder


@pytest.fixture
def options(tmp_path: Path, drawn: Path) -> argparse.Namespace:
    return argparse.Namespace(
        models="tiny",
        model="tiny",
        device="cuda:0",
        dtype="bfloat16",
        commit="0" * 40,
        queue_tokens=768,
        batch_tokens=384,
        passages=1,
        repeats=1,
        budget_s=1e6,
        checkpoints=drawn,
        json=tmp_path / "gpu.json",
        out=tmp_path,
    )


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(limits, "_PRODUCT_SIZE", 64)
    monkeypatch.setattr(kernel_steps, "_SHAPES", {"64 x 256": (64, 256)})
    monkeypatch.setattr(kernel_steps, "_HEIGHTS", (1, 17))
    monkeypatch.setattr(kernel_steps, "_LENGTHS", (1, 17, 40))
    monkeypatch.setattr(measure, "_MOST_REFERENCE_PAIRS", 2)
    with software_gpu(monkeypatch, Run("llama_bidirec")):
        yield


@pytest.mark.usefixtures("_gpu")
def test_each_row_says_how_it_ran(options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "variants_of", lambda _: (Variant("bfloat16", False), Variant("float8", False, False)))
    monkeypatch.setattr(session, "window", lambda _: 128)  # only rows of 128 tokens
    session.bench(options)

    content = json.loads(options.json.read_text())
    assert content["skipped"] == []
    # The full queue's batches of 384 tokens are larger than every graph.
    assert [(row["load"], row["ran_as"]) for row in content["results"]] == [
        ("full queue", "bfloat16, eager"),
        ("request of 1", "bfloat16, eager, graphs"),
        ("one pair", "bfloat16, eager, graphs"),
        ("full queue", "float8, eager"),
        ("request of 1", "float8, eager"),
        ("one pair", "float8, eager"),
    ]
    assert all(row["num_checked"] for row in content["results"])
    assert all(row["max_logit_error"] < 0.2 for row in content["results"][:3])


STEPS = {**kernel_steps.STEPS, **engine_steps.STEPS, **timing_steps.STEPS}


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("step", ["products", "attention", "graphs"])
def test_each_check_of_a_step_passes(step: str, options: argparse.Namespace) -> None:
    lines = list(STEPS[step](options))

    assert lines
    assert [line for line in lines if not line.startswith("ok")] == []
