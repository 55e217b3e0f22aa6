"""Training groups become folders that `rerank-service tune` reads."""

import gzip
import json
from pathlib import Path

from rerank_service.tools.tune.judged import read_judged
from training.__main__ import Group, read_groups, write_folder, write_pairs


def test_only_given_sources_and_consistent_groups_are_read(tmp_path: Path) -> None:
    rows = [
        {"src": "squad", "q": "é?", "pos": "yes", "negs": ["no", "nö"]},
        {"src": "qamr", "q": "which?", "pos": "yes", "negs": ["no"]},
        {"src": "squad", "q": "both?", "pos": "yes", "negs": ["yes"]},
    ]
    path = tmp_path / "groups.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)

    assert read_groups(path, ["squad", "nq"]) == {"squad": [Group("é?", "yes", ("no", "nö"))], "nq": []}


def test_a_written_folder_has_the_chosen_queries_and_all_their_passages(tmp_path: Path) -> None:
    groups = {"a": [Group(f"q{n}", f"answer {n // 2}", (f"other {n}", "shared")) for n in range(20)]}
    write_folder(tmp_path, groups, {"a": 6})
    judged = read_judged(tmp_path)

    expected = {group.query: group for group in groups["a"]}
    assert len(judged.queries) == 6
    for query_id, query in judged.queries.items():
        (answer,) = judged.relevance[query_id]
        assert judged.passages[answer] == expected[query].positive
    assert len(set(judged.passages.values())) == len(judged.passages)
    assert {text for query in judged.queries.values() for text in expected[query][2]} < set(judged.passages.values())


def test_a_sample_has_the_answer_and_the_negatives_of_each_query(tmp_path: Path) -> None:
    groups = [Group(f"q{n}", f"answer {n}", (f"other {n}", "shared", "shared")) for n in range(20)]
    write_pairs(tmp_path / "sample.jsonl", groups, 5)
    judged = read_judged(tmp_path / "sample.jsonl")

    assert len(judged.queries) == 5
    for query_id, query in judged.queries.items():
        number = query.removeprefix("q")
        graded = {judged.passages[passage]: grade for passage, grade in judged.relevance[query_id].items()}
        assert graded == {f"answer {number}": 1, f"other {number}": 0, "shared": 0}


def test_an_answer_of_another_group_is_no_negative(tmp_path: Path) -> None:
    groups = [Group("q", "first", ("second", "other")), Group("q", "second", ("other",))]
    write_pairs(tmp_path / "sample.jsonl", groups, 2)
    judged = read_judged(tmp_path / "sample.jsonl")

    assert judged.queries == {"q0": "q"}
    assert {judged.passages[one]: grade for one, grade in judged.relevance["q0"].items()} == {
        "first": 1,
        "second": 1,
        "other": 0,
    }
