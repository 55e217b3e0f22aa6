"""The sets of the study behind `docs/quality.md`."""

import json
from pathlib import Path

from typer.testing import CliRunner

from benchmarks.quality_study.__main__ import app
from benchmarks.quality_study.join_passages import join_corpus, join_passages, join_qrels
from benchmarks.quality_study.variants import SECTIONS, SETS

CORPUS = [json.dumps({"_id": f"p{number}", "title": "", "text": f"text {number}"}) for number in range(7)]


def test_every_passage_is_in_exactly_one_long_passage() -> None:
    joined, places = join_corpus(CORPUS, 3, seed=1)

    texts = {row["_id"]: row["text"] for row in map(json.loads, joined)}
    assert sorted(len(text.split("\n\n")) for text in texts.values()) == [1, 3, 3]
    assert sorted(places) == [f"p{number}" for number in range(7)]
    assert all(f"text {passage_id[1:]}" in texts[name].split("\n\n") for passage_id, name in places.items())
    assert join_corpus(CORPUS, 3, seed=1) == (joined, places)
    assert join_corpus(CORPUS, 3, seed=2) != (joined, places)


def test_a_long_passage_is_as_relevant_as_its_best_part() -> None:
    places = {"p0": "joined-0", "p1": "joined-0", "p2": "joined-1"}

    lines = join_qrels(["query-id\tcorpus-id\tscore", "q\tp0\t1", "q\tp1\t2", "q\tp2\t0"], places)

    assert lines == ["query-id\tcorpus-id\tscore", "q\tjoined-0\t2", "q\tjoined-1\t0"]


def test_a_joined_folder_is_a_beir_folder(tmp_path: Path) -> None:
    folder = tmp_path / "short"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text("\n".join(CORPUS) + "\n")
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "text 3"}\n')
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp3\t1\n")

    output = join_passages(folder, tmp_path / "long", 7, seed=1)

    assert len((output / "corpus.jsonl").read_text().splitlines()) == 1
    assert (output / "qrels.tsv").read_text() == "query-id\tcorpus-id\tscore\nq\tjoined-0\t1\n"
    assert (output / "queries.jsonl").read_text() == (folder / "queries.jsonl").read_text()


def test_every_section_has_sets_and_labels_are_unique() -> None:
    assert {section for one in SETS for section in one.sections} == set(SECTIONS)
    assert len({one.label for one in SETS}) == len(SETS)


def test_the_documented_command_exists(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["measure", str(tmp_path / "missing")])

    assert ran.exit_code == 2
    assert "missing" in ran.output
    assert "'measure'" not in ran.output
