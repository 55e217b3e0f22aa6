"""Tests measures against figures computed by hand, the choice of candidates, and `rerank-service eval`."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rerank_service.errors import BatchError
from rerank_service.tools.cli.main import app
from rerank_service.tools.evaluation.collection import Collection, read_collection
from rerank_service.tools.evaluation.first_stage import read_run
from rerank_service.tools.evaluation.measures import figure, measure
from rerank_service.tools.evaluation.published import PUBLISHED

CONFIG = str(Path(__file__).parents[4] / "serve_config.yaml")
CORPUS = {
    "paris": "Paris is the capital and largest city of France.",
    "berlin": "Berlin is the capital of Germany.",
    "croissant": "A croissant is a buttery pastry.",
    "bread": "Bread is baked from flour, water and yeast.",
    "rhine": "The Rhine is a river that flows to the North Sea.",
    "loire": "The Loire is the longest river of France.",
}
QUERIES = {"q1": "What is the capital of France?", "q2": "Which river is the longest in France?", "q3": "unjudged"}
QRELS = "query-id\tcorpus-id\tscore\nq1\tparis\t1\nq2\tloire\t2\n"
runner = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "geography"
    (path / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", CORPUS), ("queries", QUERIES)):
        rows = ({"_id": identifier, "text": text} for identifier, text in texts.items())
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "qrels" / "test.tsv").write_text(QRELS)
    return path


def test_a_judged_query_must_not_be_blank(folder: Path) -> None:
    path = folder / "queries.jsonl"
    path.write_text(path.read_text().replace("What is the capital of France?", " "))

    with pytest.raises(BatchError, match=r"queries\.jsonl, line 1: text is blank"):
        read_collection(folder)


def test_measures_equal_those_computed_by_hand() -> None:
    relevance = {"a": {"p1": 2, "p2": 1, "p9": 1}, "b": {"p1": 1}, "c": {"p7": 1}}
    candidates = {"a": ["p0", "p1", "p2"], "b": [f"p{n}" for n in range(20)][::-1], "c": []}
    scores = {"a": [0.1, 0.2, 0.3], "b": [1.0] * 20, "c": []}

    values = measure(relevance, candidates, scores, recall_at=(1, 20))

    # a: p2 (1), p1 (2), p0 (0), and p9 is not found; b: ties keep the order of the candidates, so p1 is 19th
    ndcg_a = (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3) + 1 / np.log2(4))
    assert values["ndcg@10"] == pytest.approx([ndcg_a, 0, 0])
    assert values["mrr@10"] == pytest.approx([1, 0, 0])
    assert values["recall@1"] == pytest.approx([1 / 3, 0, 0])
    assert values["recall@20"] == pytest.approx([2 / 3, 1, 0])


def test_intervals_are_repeatable_and_narrow_with_more_queries() -> None:
    few = np.array([0.0, 1.0] * 10)
    mean, low, high = figure(few)

    assert figure(few) == (mean, low, high)
    assert 0.2 < low < mean == 0.5 < high < 0.8
    wide, narrow = (one.high - one.low for one in (figure(few), figure(np.tile(few, 100))))
    assert narrow == pytest.approx(wide / 10, rel=0.2)
    assert figure(np.ones(5)) == (1.0, 1.0, 1.0)


def test_a_run_provides_the_candidates_of_judged_queries(folder: Path, tmp_path: Path) -> None:
    collection = read_collection(folder)
    run = tmp_path / "run.trec"
    run.write_text("q1 Q0 berlin 1 0.5 x\nq1 Q0 paris 2 0.7 x\nq1 Q0 rhine 3 0.1 x\nq3 Q0 paris 1 9 x\n")

    candidates, scores = read_run(run, collection, top_k=2)

    assert candidates == {"q1": ["paris", "berlin"], "q2": []}
    assert scores == {"q1": [0.7, 0.5], "q2": []}

    for score in ("nan", "inf"):  # scores that cannot be sorted
        run.write_text(f"q1 Q0 berlin 1 0.5 x\nq1 Q0 paris 2 {score} x\n")
        with pytest.raises(BatchError, match=f"line 2: score '{score}' is not finite"):
            read_run(run, collection, top_k=2)

    run.write_text("q1 Q0 nowhere 1 0.5 x\n")
    with pytest.raises(BatchError, match="line 1: passage 'nowhere' is not in the corpus"):
        read_run(run, collection, top_k=2)


def test_only_queries_with_a_relevant_passage_are_kept(folder: Path) -> None:
    collection = read_collection(folder)

    assert list(collection.queries) == ["q1", "q2"]
    assert not collection.brings_candidates
    assert read_collection(folder, max_queries=1).queries.keys() == {"q1"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("qrels/test.tsv", "q1\tparis\tvery\n", "line 1: relevance 'very' is not an integer"),
        ("qrels/test.tsv", "other\tparis\t1\n", "check that queries and qrels use the same ids"),
        ("corpus.jsonl", '{"_id": "p"}\n', "corpus.jsonl, line 1: text is missing"),
        ("queries.jsonl", '{"text": "p"}\n', "queries.jsonl, line 1: _id is missing"),
    ],
)
def test_errors_of_a_folder_name_file_line_and_field(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)

    with pytest.raises(BatchError, match=message):
        read_collection(folder)


def test_eval_compares_models_and_plots_them(folder: Path, tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    picture = tmp_path / "plot.png"
    models = ["--model", "all-MiniLM-L6-v2", "--model", str(checkpoints["llama_bidirec"])]
    command = ["eval", str(folder), "--config", CONFIG, "--dtype", "float32", *models]

    shown = runner.invoke(app, command, env={"COLUMNS": "200"})
    answer = json.loads(runner.invoke(app, [*command, "--json", "--plot", str(picture)]).stdout)

    assert shown.exit_code == 0, shown.output
    assert "geography: 2 queries, 6 passages, candidates BM25 top 100" in shown.stdout
    first, embedded, random = answer["models"]
    assert (first["model"], first["pairs_per_s"]) == ("BM25", None)
    assert embedded["quality"]["ndcg@10"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert embedded["pairs_per_s"] > 0
    assert random["model"] == "llama_bidirec"
    assert answer["num_pairs"] == 12
    assert [row["value"] for row in answer["published"]] == [row.value for row in PUBLISHED]
    assert all(f"{row.value:.4f}" in shown.stdout for row in PUBLISHED)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_published_figure_has_a_source() -> None:
    assert all(row.source and row.measure and row.collections and 0 < row.value < 1 for row in PUBLISHED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "has none of qrels.tsv"),
        (["{folder}", "--qrels", "nowhere"], "nowhere does not exist"),
        (["{folder}", "--plot", "plot.bmp"], "plot.bmp must end in one of"),
        (["{folder}", "--model", "nope"], "has no model 'nope'"),
    ],
)
def test_errors_are_one_line(folder: Path, arguments: list[str], message: str) -> None:
    filled = [argument.replace("{folder}", str(folder)) for argument in arguments]
    result = runner.invoke(app, ["eval", *filled, "--config", CONFIG])

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_judged_passages_are_the_candidates_if_every_query_has_several() -> None:
    collection = Collection("c", CORPUS, {"q1": "?"}, {"q1": {"paris": 1, "berlin": 0}})

    assert collection.brings_candidates
