"""The report rewrites its sections and nothing else."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import TABLES, engine_table, peers_table, replace_sections, service_table, versions_table

_ROOT = Path(__file__).parents[3]
_PAGE = """# Title

<!-- generated: first -->
old
<!-- end -->

Prose stays.

<!-- generated: second -->
<!-- end -->
"""
_ORIGIN = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789abcdef",
    "has_uncommitted_changes": False,
    "command": "python",
    "hardware": {"cpu": "a CPU", "cores": 2, "gpu": None},
}
_LOAD = {
    "p50_s": None,
    "p95_s": 2.0,
    "p99_s": 3.0,
    "passages_per_s": 4.0,
    "cpu_s_per_1k_passages": None,
    "failures": {"503": 2},
}


def _contender(name: str, ratio: float | None) -> dict[str, Any]:
    figures = {
        "cpu_s_per_1k_pairs": 10.0,
        "ratio_to_bare": ratio,
        "pairs_per_s": 20.0,
        "p50_s": 1.0,
        "wait_share": None,
        "max_logit_error": 0.001,
        "failures": {},
    }
    error = None if ratio else "did not start: no room\nmore"
    return {"name": name, "versions": {"x": "1"}, "note": None, "error": error, "figures": figures if ratio else None}


def test_only_the_section_named_changes() -> None:
    page = replace_sections(_PAGE, {"first": "new"})

    assert page == _PAGE.replace("\nold\n", "\n\nnew\n\n")


def test_replacing_twice_is_replacing_once() -> None:
    contents = {"first": "| a |\n| --- |\n| \\1 |", "second": "b"}

    once = replace_sections(_PAGE, contents)

    assert replace_sections(once, contents) == once
    assert "Prose stays." in once


def test_a_table_without_a_place_is_refused() -> None:
    with pytest.raises(KeyError, match="third"):
        replace_sections(_PAGE, {"third": "c"})


def test_the_page_has_a_section_for_every_table_and_no_other() -> None:
    page = (_ROOT / "docs" / "performance.md").read_text(encoding="utf-8")

    assert sorted(re.findall(r"<!-- generated: ([\w-]+) -->", page)) == sorted(TABLES)


@pytest.mark.parametrize(("file", "shown"), TABLES.values(), ids=list(TABLES))
def test_figures_that_are_committed_can_be_shown(file: str, shown: Callable[[Any], str]) -> None:
    record = json.loads((_ROOT / "benchmarks" / "results" / file).read_text(encoding="utf-8"))

    assert shown(record).startswith(("| ", "!["))


def test_every_engine_has_its_row() -> None:
    record = json.loads((_ROOT / "benchmarks" / "results" / "engine-cpu.json").read_text(encoding="utf-8"))

    table = engine_table(record)

    assert table.count("\n| ") == 1 + len(record["results"])


def test_peers_are_listed_cheapest_first_and_those_not_measured_last() -> None:
    settings = {"num_clients": 16, "num_pairs": 1600, "mean_pair_tokens": 126.0, "num_rounds": 3, "num_threads": 2}
    record = _ORIGIN | {
        "settings": settings | {"logit_range": 0.5},
        "bare": [{"cpu_s_per_1k_pairs": 40.0, "pairs_per_s": 30.0}],
        "contenders": [_contender("broken", None), _contender("slow", 1.5), _contender("ours-float32", 0.5)],
    }

    rows = peers_table(record).splitlines()[2:6]

    assert [row.split(" | ")[0] for row in rows] == [
        "| bare float32 forward, no server",
        "| **ours-float32**",
        "| slow",
        "| broken",
    ]
    assert "| broken | x 1 | not measured: did not start: no room |" in versions_table(record)


def test_what_was_not_measured_is_left_empty() -> None:
    probe = {"small_alone_s": 0.1, "small_behind_big_s": 0.1, "big_s": 0.1, "wait_share": None}

    table = service_table(_ORIGIN | {"results": {"loads": {"1 client": _LOAD}, **probe}})

    assert "| 1 client |  | 2.00 | 3.00 | 4 |  | 2 x 503 |" in table
    assert "was over too soon" in table
