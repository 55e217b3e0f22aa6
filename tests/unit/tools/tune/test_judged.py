"""Judged pairs and BEIR folders become collections; a bad line is named by file, line and field."""

import json
from pathlib import Path

import pytest

from rerank_service.errors import BatchError
from rerank_service.tools.tune.judged import read_judged


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_pairs_with_equal_texts_share_ids(tmp_path: Path) -> None:
    pairs = write(
        tmp_path / "mine.jsonl",
        {"query": "a", "passage": "x"},
        {"query": "a", "passage": "y", "relevance": 0},
        {"query": "b", "passage": "x", "relevance": 2},
        {"query": "unanswered", "passage": "y", "relevance": 0},
    )
    judged = read_judged(pairs)

    assert judged.name == "mine"
    assert judged.queries == {"q0": "a", "q1": "b"}
    assert judged.passages == {"p0": "x", "p1": "y"}
    assert judged.relevance == {"q0": {"p0": 1, "p1": 0}, "q1": {"p0": 2}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"passage": "x"}, "line 2: query is missing"),
        ({"query": " ", "passage": "x"}, "line 2: query is blank"),
        ({"query": "q", "passage": ["x"]}, "line 2: passage is not text"),
        ({"query": "q", "passage": "x", "relevance": "high"}, "line 2: relevance is not an integer of 0 or more"),
        ({"query": "q", "passage": "x", "relevance": True}, "line 2: relevance is not an integer"),
        ({"query": "q", "passage": "x", "relevance": -1}, "line 2: relevance is not an integer"),
        ({"query": "a", "passage": "b", "relevance": 0}, "line 2: relevance contradicts an earlier line"),
        ("not json\n", "line 2: not JSON"),
    ],
)
def test_a_bad_pair_is_named(tmp_path: Path, row: object, message: str) -> None:
    pairs = write(tmp_path / "pairs.jsonl", {"query": "a", "passage": "b"}, row)

    with pytest.raises(BatchError, match=message) as caught:
        read_judged(pairs)
    assert str(pairs) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match=r"none\.jsonl does not exist"):
        read_judged(tmp_path / "none.jsonl")


def test_pairs_without_a_relevant_passage_are_refused(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", {"query": "a", "passage": "b", "relevance": 0})

    with pytest.raises(BatchError, match="no query with a relevant passage"):
        read_judged(pairs)


def test_judgements_of_passages_that_a_folder_lacks_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl", {"_id": "p1", "text": "one"})
    write(tmp_path / "queries.jsonl", {"_id": "a", "text": "first"}, {"_id": "b", "text": "second"})
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\na\tp1\t1\na\tp2\t1\nb\tp2\t1\n")
    judged = read_judged(tmp_path)

    assert judged.queries == {"a": "first"}
    assert judged.relevance == {"a": {"p1": 1}}
