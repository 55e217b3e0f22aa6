"""A whole run: it improves held-out queries, continues after an interruption, and opens held-out queries once."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rerank_service.errors import BatchError
from rerank_service.tools.cli.main import app
from rerank_service.tools.tune.tune import REPORT, TuneOptions, tune
from tests.models import local_model
from tests.unit.tools.tune.judgements import blue_task, write_pairs

OPTIONS = TuneOptions(num_steps=30, rate=5e-3, rank=8)
runner = CliRunner()


class Interrupted(Exception):
    """Ends a run in the place where a test wants it."""


class Stages:
    """Records the stages that a run reaches, and can interrupt it at a training step."""

    def __init__(self, stop_at_step: int | None = None) -> None:
        self.reached: list[str] = []
        self.steps: list[int] = []
        self._stop_at_step = stop_at_step

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self.reached:
            self.reached.append(stage)
        if stage == "training":
            self.steps.append(done)
            if done == self._stop_at_step:
                raise Interrupted


def run(
    checkpoint: Path, judged: Path, output: Path, options: TuneOptions = OPTIONS, stages: Stages | None = None
) -> dict[str, Any]:
    judged.mkdir(exist_ok=True)
    return tune(local_model(checkpoint), blue_task(judged, 60), None, [], output, options, stages or Stages())


def test_a_cross_encoder_learns_a_task_that_it_cannot_do(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    report = run(checkpoints["bert"], tmp_path / "in", tmp_path / "out")

    (held_out,) = report["held_out"]["sets"]
    assert report["is_better"]
    assert held_out["num_queries"] == 12
    assert held_out["after"] > 0.95 > held_out["before"]
    assert report["held_out"]["difference"]["low"] > 0
    assert json.loads((tmp_path / "out" / REPORT).read_text()) == report
    assert not (tmp_path / "out" / ".tuning").exists()


def test_an_interrupted_run_continues_with_the_same_result(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    whole = run(checkpoints["bert"], tmp_path / "in", tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(checkpoints["bert"], tmp_path / "in", tmp_path / "parts", stages=Stages(stop_at_step=17))
    rest = Stages()
    continued = run(checkpoints["bert"], tmp_path / "in", tmp_path / "parts", stages=rest)

    assert rest.steps == list(range(10, 31))  # the state was saved after step 10
    assert continued == whole
    name = "model.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_run_is_not_judged_again(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    report = run(checkpoints["bert"], tmp_path / "in", tmp_path / "out")
    again = Stages()

    assert run(checkpoints["bert"], tmp_path / "in", tmp_path / "out", stages=again) == report
    assert again.reached == []


def test_a_change_that_does_not_help_leaves_the_held_out_queries_unused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    stages = Stages()
    useless = replace(OPTIONS, num_steps=1, rate=1e-9)
    report = run(checkpoints["bert"], tmp_path / "in", tmp_path / "out", useless, stages=stages)

    assert (report["share"], report["held_out"], report["is_better"]) == (0.0, None, False)
    assert stages.reached == ["training", "dev"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [REPORT]


@pytest.mark.parametrize(("steps_before", "is_finished"), [(12, False), (None, True)])
def test_another_run_in_the_same_folder_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, steps_before: int | None, is_finished: bool
) -> None:
    try:
        run(checkpoints["bert"], tmp_path / "in", tmp_path / "out", stages=Stages(steps_before))
    except Interrupted:
        assert not is_finished

    with pytest.raises(BatchError, match=re.escape("other settings (rank, seed)")):
        run(checkpoints["bert"], tmp_path / "in", tmp_path / "out", replace(OPTIONS, rank=2, seed=5))


def test_a_folder_with_other_files_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("")

    with pytest.raises(BatchError, match=r"out is not empty: give a new folder as --output"):
        run(checkpoints["bert"], tmp_path / "in", tmp_path / "out")


def cli(checkpoint: Path, folder: Path, *arguments: str) -> Any:
    pairs = write_pairs(folder / "pairs.jsonl", 60)
    options = ["--train", str(pairs), "--output", str(folder / "out"), "--steps", "30", "--rate", "0.005"]
    return runner.invoke(app, ["tune", str(checkpoint), *options, "--threads", "1", *arguments])


def test_the_command_prints_the_verdict_and_how_to_serve(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    result = cli(checkpoints["bert"], tmp_path)

    assert result.exit_code == 0
    assert "trained on 39 queries in 30 steps" in result.output
    assert re.search(r"pairs +12 +0\.\d+ +\d\.\d+ +\+0\.\d+ +\+0\.\d+ to \+0\.\d+", result.output)
    assert f"rerank-service serve NAME={tmp_path / 'out'}" in result.output.replace("\n", " ")


def test_the_command_fails_if_the_model_is_not_better(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    result = cli(checkpoints["bert"], tmp_path, "--rate", "0.000000001", "--steps", "1", "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["is_better"] is False


def test_the_command_names_a_bad_line(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "q", "passage": 7}\n')
    result = cli(checkpoints["bert"], tmp_path, "--held-out", str(bad))

    assert result.exit_code == 2
    assert "bad.jsonl, line 1: passage is not text" in result.output.replace("\n", " ")
