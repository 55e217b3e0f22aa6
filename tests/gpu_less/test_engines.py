"""Every engine, precision and way to run layers on a software GPU, with the kernels of the oldest and newest torch."""

from itertools import product
from pathlib import Path

import pytest

from tests.gpu_less.engines import MODELS, RECTANGULAR, WAYS, Run, check


def _differs(model: str, dtype: str, way: str) -> bool:
    """Whether a run may differ from the others. Rectangular models have neither compiled layers nor graphs, and the
    engines run the same operators in float16 as in bfloat16."""
    if way == "eager" or dtype == "bfloat16":
        return True
    return dtype == "float8" and model not in RECTANGULAR


RUNS = [
    *(Run(*run) for run in product(MODELS, ("bfloat16", "float16", "float8"), WAYS) if _differs(*run)),
    *(Run(model, release="2.11.0") for model in MODELS),
    Run("llama_bidirec", way="graphed", device=1),
    Run("late_interaction", device=1),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: "-".join(map(str, run)))
def test_logits_without_a_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, checkpoints: dict[str, Path], run: Run
) -> None:
    check(monkeypatch, caplog, checkpoints, run)
