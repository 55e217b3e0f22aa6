"""Every engine, precision and way to run layers on a software GPU, with the kernels of the oldest and newest torch."""

from itertools import product
from pathlib import Path

import pytest

from tests.gpu_less.engines import MODELS, WAYS, Run, check

RUNS = [
    *(Run(*run) for run in product(MODELS, ("bfloat16", "float16", "float8"), WAYS)),
    *(Run(model, release="2.11.0") for model in MODELS),
    Run("llama_bidirec", device=1),
    Run("late_interaction", device=1),
]
WAITING = {"late_interaction"}
"""Models whose passes still wait for the device."""


def _row(run: Run) -> object:
    waits = pytest.mark.xfail(reason="late interaction copies from pageable memory", strict=True)
    return pytest.param(run, id="-".join(map(str, run)), marks=[waits] if run.model in WAITING else [])


@pytest.mark.parametrize("run", map(_row, RUNS))
def test_logits_without_a_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, checkpoints: dict[str, Path], run: Run
) -> None:
    check(monkeypatch, caplog, checkpoints, run)
