"""Every table and progress bar, on terminals of 80, 100 and 200 columns: scores and names are whole, lines fit."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
from fastapi import FastAPI
from rich.cells import cell_len
from typer.testing import CliRunner

from rerank_service.tools.bench.engine import EngineFigures
from rerank_service.tools.bench.workload import Lengths
from rerank_service.tools.catalogue import CATALOGUE
from rerank_service.tools.catalogue.fit import Gpu, Machine
from rerank_service.tools.cli.bench import engine_table
from rerank_service.tools.cli.bench_service import service_table
from rerank_service.tools.cli.console import stdout
from rerank_service.tools.cli.main import app
from rerank_service.tools.cli.plan import plan_answer, plan_table
from rerank_service.tools.cli.progress import ProgressBar
from rerank_service.tools.planning.capacity import CapacityReport, plan_capacity
from rerank_service.tools.planning.cells import fewest_cells
from rerank_service.tools.planning.fleet import Demand
from rerank_service.tools.planning.region import Loss
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Mix
from tests.fetching import ID, contents, hub_with, isolated_environment
from tests.http_servers import ranking, running, scripted

LONG_NAME = "an-organisation-with-a-long-name/a-reranker-with-a-long-name-too-large-v2-multilingual-instruct"
PASSAGES = ["a word " * 60, "東京は日本の首都です。" * 20, "x" * 400, "short", "\x1b[31mred\ttab\x07"]
LOGITS = [-12345.678, 0.004, -0.5, 20.625, -7.25]
runner = CliRunner()

Show = Callable[..., str]


@pytest.fixture(params=[80, 100, 200])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Width of the terminal that the consoles find."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    width: int = request.param
    return width


@pytest.fixture
def show(columns: int) -> Show:
    """Runs a command and returns its standard output, whose lines fit the terminal."""

    def shown(*arguments: str, exit_code: int = 0) -> str:
        result = runner.invoke(app, list(arguments))
        assert result.exit_code == exit_code, result.output
        assert_fits(result.stdout, columns)
        return result.stdout

    return shown


def assert_fits(text: str, columns: int) -> None:
    assert [line for line in text.splitlines() if cell_len(line) > columns] == []
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


def column(text: str, start: int, end: int) -> str:
    """The characters of a column, over all lines."""
    return "".join(line[start:end].strip() for line in text.splitlines())


def test_rank(show: Show, columns: int, tmp_path: Path) -> None:
    path = tmp_path / "passages.txt"
    path.write_text("\n".join(PASSAGES))
    with scripted(ranking(LOGITS)) as server:
        header, *rows = show("rank", "q", str(path), "--url", server.url).splitlines()

    assert header.split() == ["logit", "index", "passage"]
    assert [row.split()[:2] for row in rows] == [
        ["20.62", "3"],
        ["0.00", "1"],
        ["-0.50", "2"],
        ["-7.25", "4"],
        ["-12345.68", "0"],
    ]
    assert rows[0].endswith("  short")
    assert rows[3].endswith(" [31mred tab ")
    assert all(row.endswith("…") and cell_len(row) >= columns - 1 for row in (rows[1], rows[2], rows[4]))


def test_models(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA H100 80GB HBM3", 80_000_000_000)
    for machine in (Machine(8_000_000_000, (), False), Machine(64_000_000_000, (gpu,), True)):
        monkeypatch.setattr("rerank_service.tools.catalogue.fit.this_machine", lambda machine=machine: machine)
        lines = show("models").splitlines()
        rows: dict[str, str] = {}
        for line in filter(str.strip, lines):
            rows.setdefault(line.split()[0], line)  # a refusal, further down, may name a model too
        facts = json.loads(runner.invoke(app, ["models", "--json"]).stdout)["models"]
        assert [model["name"] for model in facts] == [model.name for model in CATALOGUE]
        for model in facts:
            row = rows[model["name"]]
            if model["runs_on"] is not None:
                assert f" {model['needed_bytes'] / 1e9:.1f} GB  " in row
                assert f"  {model['languages']}" in row


def test_models_of_a_service(show: Show, columns: int) -> None:
    api = FastAPI()
    api.get("/v1/models")(lambda: {"data": [{"id": one, "root": LONG_NAME} for one in (LONG_NAME, "an-alias")]})
    with running(api) as url:
        text = show("models", "--url", url)

    second = text.splitlines()[0].index("also called")
    assert column(text, 0, second) == f"model{LONG_NAME}"
    assert column(text, second, columns) == "also calledan-alias"


@pytest.fixture
def long_named(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A small checkpoint in a folder with a long name, which is then the model's name."""
    return copytree(checkpoints["bert"], tmp_path / LONG_NAME.replace("/", "-"))


def test_eval(show: Show, long_named: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a-collection-with-a-name-of-more-than-forty-characters"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text('{"_id": "p", "text": "Paris is a city"}\n{"_id": "b", "text": "bread"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "Which city?"}\n')
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp\t1\n")

    text = show("eval", str(folder), "--model", str(long_named), "--recall-at", "5", "--recall-at", "1000")

    table, _, published = text.partition("Figures published")
    header = next(line for line in table.splitlines() if line.startswith("model"))
    names = column(table[table.index(header) :], 0, header.index("measure"))
    assert names.startswith(f"modelBM25{long_named.name}")
    for measure in ("ndcg@10", "mrr@10", "recall@5", "recall@1000"):
        assert len(re.findall(rf" {measure} +\d\.\d{{3}} +\d\.\d{{3}}-\d\.\d{{3}}", table)) == 2
    header = next(line for line in published.splitlines() if line.startswith("model"))
    names = column(published[published.index(header) :], 0, header.index("first stage"))
    assert "nvidia/llama-3.2-nv-rerankqa-1b-v2nvidia/nv-rerankqa-mistral-4b-v3BM25" in names
    assert re.findall(r"recall@5 +(0\.\d{4})", published) == ["0.7364", "0.7545", "0.4467"]


@pytest.fixture(scope="module")
def capacity() -> CapacityReport:
    demand = Demand(
        Mix({10: 4, 100: 1}, Lengths.SHORT), 2.0, 1.5, ReplicaSpeed(20_000, origin="assumed " * 30), timeout_s=5
    )
    return plan_capacity(demand, loss=Loss(2, 5.0, 10.0), price_per_gpu_hour=12345.67)


def test_plan(capacity: CapacityReport, columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    answer = plan_answer(capacity, "H100", "10:4,100:1", "short")
    stdout.print(plan_table(capacity))
    table = capsys.readouterr().out

    plan = capacity.plan
    assert answer.startswith(f"You need {plan.replicas} H100{'' if plan.replicas == 1 else 's'}: ")
    assert_fits(table, columns)
    assert "…" not in table
    for name, value in {
        "replicas": f"{plan.replicas}",
        "p99 latency": f"{1000 * plan.measured.p99_s:,.0f} ms",
        "busy": f"{plan.measured.utilisation:.0%}",
        "one replica": "20,000",
        "cost": f"{capacity.cost_per_million_passages:.2f}",
    }.items():
        assert re.search(rf"^{name} +{re.escape(value)}  ", table, re.MULTILINE)


def test_plan_of_several_clusters(capacity: CapacityReport, columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    cells = fewest_cells(replace(capacity.demand, rps=2_000.0), 1_500)
    assert capacity.cells is None
    stdout.print(plan_table(replace(capacity, cells=cells)))
    table = capsys.readouterr().out

    assert_fits(table, columns)
    assert re.search(rf"^clusters +{cells.count}  of {cells.replicas} replicas", table, re.MULTILINE)


def test_verify(show: Show, long_named: Path) -> None:
    text = show("verify", str(long_named), "--dtype", "float32")

    assert f"{long_named.name}:YES," in "".join(text.split())
    assert "…" not in text
    assert len(re.findall(r" yes *$", text, re.MULTILINE)) >= 3


def test_batch(show: Show, long_named: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"query": "q", "passage": "p"}\n')
    output = tmp_path / "scored.jsonl"

    words = " ".join(show("batch", str(tmp_path / "pairs.jsonl"), str(output), "--model", str(long_named)).split())

    assert re.search(r": 1 pairs, \d+\.\d s, \d+ pairs/s, ", words)


def test_bench_service(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    load = {"p50_s": 1234.56, "p95_s": 2345.67, "p99_s": 3456.78, "passages_per_s": 123456.0}
    load |= {"cpu_s_per_1k_passages": 1234.5, "failures": {"503": 12, "ConnectError": 3456}}
    mixed = load | {"p50_s_by_passages": {"1": 0.12, "512": 345.67}}
    loads = {"16 clients, each with a long description": load, "mixed": mixed}

    stdout.print(service_table({"loads": loads}, "16 requests of 100 passages of 128 tokens; median of 3 runs"))
    text = capsys.readouterr().out

    assert_fits(text, columns)
    figures = ["1234.56", "2345.67", "3456.78", "123456", "1234.5"]
    assert len(re.findall(" +".join(map(re.escape, figures)), text)) == 2
    assert re.search(r"of 512 +345\.67", text)
    header = text.splitlines()[1]
    assert column(text, 0, header.index("p50 s") - 2).replace(" ", "").count("eachwithalongdescription") == 1
    assert "12 x 503" in " ".join(text[text.index("failures") :].split())


def test_bench_engine(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    row = EngineFigures(
        "sequence_classifier, ModernBERT with a long name", "bfloat16", 1234.5, 12345.6, 1.25, 32, 0.5, 678, 9, 0.000123
    )

    stdout.print(engine_table([row], "48 pairs, long-tail; median of 3 runs"))
    text = capsys.readouterr().out

    assert_fits(text, columns)
    assert re.search(r"bfloat16 +1234\.5 +12345\.6 +1\.25 +50% +678 +0\.00012", text)
    header = text.splitlines()[1]
    assert "ModernBERTwithalongname" in column(text, 0, header.index("dtype")).replace(" ", "")


def test_pull(show: Show, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_with(contents(checkpoints["bert"])) as (server, commit):
        isolated_environment(monkeypatch, tmp_path, server.url)
        monkeypatch.chdir(tmp_path)
        text = show("pull", ID, "--to", "m")

    assert f"{ID}: main is commit {commit}" in text
    assert re.search(r"\d+ files, \d+\.\d MB", text)
    assert text.endswith(f"    checkpoint:\n      source: {tmp_path / 'm'}\n")


def test_progress_with_a_long_name(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(**{LONG_NAME: "pairs"}) as report:
        report(LONG_NAME, 0, 1_234_567)
        report(LONG_NAME, 234_567, 1_234_567)

    shown = capsys.readouterr().err
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", shown)]
    assert all(cell_len(line) <= columns for line in lines)
    assert any("234,567 of 1,234,567 pairs" in line and " left" in line for line in lines)
