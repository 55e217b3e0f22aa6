"""The GPU benchmark, as far as a machine without a GPU can run it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_steps import STEPS
from benchmarks.on_gpu.kernel_steps import verdict
from benchmarks.on_gpu.limits import Operations, Rates, operations
from benchmarks.on_gpu.measure import Figures
from benchmarks.on_gpu.models import state_of
from benchmarks.on_gpu.packages import PACKAGES, PRESENT, pinned, use_packages
from benchmarks.on_gpu.plan import FULL_QUEUE, ONE_PAIR, REQUEST, Budget, Extent, Row, Variant, rows_of, variants_of
from benchmarks.on_gpu.record import Record, table
from benchmarks.on_gpu.timing_steps import Kernel, busy_share, summary

ROOT = Path(__file__).parents[3]
EXTENT = Extent(queue_tokens=262_144, num_passages=100, repeats=3)
LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
FIGURES = Figures(
    *("1b", "bfloat16, compiled, graphs", "bfloat16, eager", FULL_QUEUE, 512, 512, 380.0, 194560.0, 1347.4, 772.0),
    *(0.492, 0.492, 525, 0.03, 1.1, 16, ("CUDA graphs are turned off",)),
)

BARE = """
import builtins, runpy, sys
real, present = builtins.__import__, {names!r}

def importing(name, globals=None, locals=None, fromlist=(), level=0):
    importer, top = (globals or {{}}).get("__name__", ""), name.partition(".")[0]
    is_ours = level or top in ("rerank_service", "benchmarks") or top in sys.stdlib_module_names
    if importer.partition(".")[0] in ("rerank_service", "benchmarks") and not is_ours and top not in present:
        raise AssertionError(f"{{importer}} imports {{name}}, which a GPU machine lacks")
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = importing
sys.argv = ["gpu.py", *{arguments!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


def run_bare(script: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script from another folder. Our modules may import only packages of a GPU machine and those brought."""
    names = {name.replace("-", "_") for name in (*PACKAGES, *PRESENT)} | {"yaml"}
    code = BARE.format(names=names, arguments=arguments, script=str(ROOT / "benchmarks" / script))
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_the_script_runs_on_a_bare_machine_and_saves_each_row(tmp_path: Path) -> None:
    arguments = [
        "--device",
        "cpu",
        "--models",
        "tiny",
        "--queue-tokens",
        "1024",
        "--passages",
        "3",
        "--repeats",
        "1",
        "--budget-s",
        "1e6",
    ]
    arguments += ["--json", "out.json", "--checkpoints", "checkpoints"]
    result = run_bare("gpu.py", arguments, tmp_path)

    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert [(row["load"], row["tokens_per_pair"]) for row in content["results"]] == [
        (FULL_QUEUE, 512),
        (REQUEST.format(3), 512),
        (ONE_PAIR, 128),
        (FULL_QUEUE, 128),
        (REQUEST.format(3), 128),
    ]
    assert all(row["num_checked"] and row["max_logit_error"] < 0.5 for row in content["results"])
    assert all(row["ran_as"] == "bfloat16, eager" for row in content["results"])
    assert content["skipped"] == []
    assert len(result.stdout.split("| model |")[1].strip().splitlines()) == 2 + 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "out.json"]


def test_rows_without_time_are_listed_as_skipped(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--models", "tiny", "--budget-s", "0.001", "--json", "out.json"]
    result = run_bare("gpu.py", [*arguments, "--checkpoints", "checkpoints"], tmp_path)

    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["results"] == []
    assert {entry["reason"] for entry in content["skipped"]} == {"no time"}
    assert [entry["row"] for entry in content["skipped"]][:2] == [
        "tiny, float32 reference",
        "tiny, bfloat16, eager, full queue, 512 tokens each",
    ]
    assert len(content["skipped"]) == 6


def test_operations_of_the_published_shapes() -> None:
    """Twice the layers' parameters per token (973M for the 1B), plus the operations of attention."""
    assert operations(LLAMA_1B, [1]).linear == pytest.approx(2 * 973e6, rel=0.001)
    assert operations(LLAMA_1B, [512]).total / 512 == pytest.approx(2 * 973e6 + 16 * 4 * 2048 * 512, rel=0.001)


def test_the_limit_uses_the_rate_of_each_product() -> None:
    rates, work = Rates(bfloat16=800.0, float8=1600.0), Operations(linear=1600.0, attention=80.0)

    assert rates.least_seconds(work, "bfloat16") == pytest.approx(2.1)
    assert rates.least_seconds(work, "float8") == pytest.approx(1.1)
    assert Rates(800.0, None).least_seconds(work, "float8") == pytest.approx(2.1)


def test_the_variants_that_a_service_uses_come_first_with_all_rows() -> None:
    first, second, *others = variants_of("cuda")
    assert [first.name, second.name] == ["bfloat16, compiled, graphs", "float8, compiled, graphs"]

    rows = rows_of("1b", second, 8192, EXTENT, is_first=False)
    assert [(row.load.name, row.load.num_tokens) for row in rows[:3]] == [
        (FULL_QUEUE, 512),
        (REQUEST.format(100), 512),
        (ONE_PAIR, 128),
    ]
    assert {row.load.num_tokens for row in rows} == {128, 512, 2048, 8192}
    assert all(len(rows_of("1b", variant, 8192, EXTENT, is_first=False)) == 3 for variant in others[:2])
    assert {row.load.num_tokens for row in rows_of("4b", first, 8192, EXTENT, is_first=True)} == {128, 512}


def test_a_budget_skips_what_does_not_fit() -> None:
    now = [0.0]
    budget = Budget(100.0, lambda: now[0])
    rows: list[Row] = rows_of("1b", Variant("bfloat16"), 8192, EXTENT, is_first=True)
    assert budget.has_time_for(rows[:1], 99.0)
    now[0] = 95.0

    assert not budget.has_time_for(rows[1:2], 6.0)
    assert budget.has_time_for(rows[2:3], 4.0)
    assert budget.skipped == ["1b, bfloat16, compiled, graphs, request of 100, 512 tokens each"]


def test_the_budgets_end_within_five_and_eight_minutes() -> None:
    assert Budget.of_model("1b", None).seconds < 300
    assert Budget.of_model("4b", None).seconds < 480
    assert Budget.of_model("4b", 60.0).seconds == 60


class _Engine:
    precision = "bfloat16"

    def __init__(self) -> None:
        self.backbone = torch.nn.ModuleList([torch.nn.Linear(2, 2)])


def test_a_row_says_what_torch_did_and_not_what_was_asked_for() -> None:
    engine = _Engine()
    assert str(state_of(engine, 0, 4)) == "bfloat16, eager"

    engine.backbone[0].compile(backend="eager")
    assert str(state_of(engine, 4, 4)) == "bfloat16, compiled, graphs"
    assert str(state_of(engine, 1, 4)) == "bfloat16, compiled, graphs for 1 of 4 batches"

    engine.backbone[0]._compiled_call_impl = None  # as after a failed compilation
    assert str(state_of(engine, 0, 4)) == "bfloat16, eager"


def test_every_addition_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "results" / "gpu.json"
    record = Record(path, {"commit": "0" * 40}, Rates(795e12, 1500e12))
    assert json.loads(path.read_text())["results"] == []

    record.add(FIGURES)
    record.add_skipped(["4b"], "no time")

    content = json.loads(path.read_text())
    assert content["product_tflops"] == {"bfloat16": 795.0, "float8": 1500.0}
    assert content["results"][0]["warnings"] == ["CUDA graphs are turned off"]
    assert content["skipped"] == [{"row": "4b", "reason": "no time"}]
    assert [file.name for file in path.parent.iterdir()] == ["gpu.json"]


def test_the_table_shows_the_limit_and_the_aim_beside_the_speed() -> None:
    unchecked = replace(FIGURES, aim_pairs_per_s=None, max_logit_error=None, logit_std=None)
    lines = table([FIGURES, unchecked]).splitlines()

    assert "| 380.0 | 772.0 | 49% | 49% | 525 | 1347.4 | 0.030 (1.10) |" in lines[2]
    assert lines[3].endswith("|  | 1347.4 | not checked |")


def test_the_packages_are_pinned_as_everywhere_else() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    requirements = pinned(constraints)

    assert len(requirements) == len(PACKAGES)
    assert all(requirement in constraints.splitlines() for requirement in requirements)


def test_brought_packages_are_used_only_by_their_version_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(sys.path)
    use_packages(tmp_path)
    (tmp_path / ".bench/packages/cp27").mkdir(parents=True)
    use_packages(tmp_path)
    assert sys.path == before

    own = tmp_path / ".bench/packages" / f"cp{sys.version_info.major}{sys.version_info.minor}"
    own.mkdir()
    use_packages(tmp_path)
    assert sys.path == [*before, str(own)]


def test_the_steps_of_the_first_minutes_run_on_a_cpu(tmp_path: Path) -> None:
    arguments = [*STEPS, "--device", "cpu", "--model", "tiny", "--checkpoints", "checkpoints", "--out", "out"]
    result = run_bare("gpu_steps.py", arguments, tmp_path)

    assert result.returncode == 0, result.stderr + result.stdout
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if line.endswith(" s") and line.split(":")[0] in STEPS] == list(STEPS)
    assert sum(line.startswith("ok:") for line in lines) >= 40
    assert [line for line in lines if "not on a CPU" in line] == ["graphs: not on a CPU", "memory: not on a CPU"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["profile-tiny-bfloat16-eager.txt"]


def test_gaps_and_kernels_come_from_the_recorded_times() -> None:
    kernels = [Kernel("gemm", 0, 40), Kernel("norm", 30, 50), Kernel("gemm", 70, 100), Kernel("copy", 100, 110)]

    share, longest_us = busy_share(reversed(kernels))
    lines = list(summary(kernels, num_layers=2))

    assert (share, longest_us) == (pytest.approx(90 / 110), 20)
    assert lines[0].split() == ["0.07", "ms", "70%", "1.0", "a", "layer", "gemm"]
    assert len(lines) == 3


def test_an_error_that_is_not_a_number_fails() -> None:
    assert verdict("step", 0.1, 0.2).startswith("ok")
    assert verdict("step", 0.3, 0.2).startswith("FAIL")
    assert verdict("step", float("nan"), 0.2).startswith("FAIL")
