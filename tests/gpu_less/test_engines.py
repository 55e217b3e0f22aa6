"""Every engine, precision and way to run layers on a software GPU, with the kernels of the oldest and newest torch."""

from itertools import product
from pathlib import Path

import pytest

from tests.gpu_less.engines import MODELS, WAYS, Run, check

RUNS = [
    *(Run(*run) for run in product(MODELS, ("bfloat16", "float16", "float8"), WAYS)),
    *(Run(model, release="2.11.0") for model in MODELS),
    Run("llama_bidirec", way="graphed", device=1),
    Run("late_interaction", device=1),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: "-".join(map(str, run)))
def test_logits_without_a_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, checkpoints: dict[str, Path], run: Run
) -> None:
    check(monkeypatch, caplog, checkpoints, run)
