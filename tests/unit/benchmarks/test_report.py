"""The report changes only generated sections, and the committed pages are up to date."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.__main__ import contents, pages
from benchmarks.report.applications import verdict
from benchmarks.report.pages import replace_sections, section_names
from benchmarks.report.peers import peers_table, summary_table, versions_table
from benchmarks.report.performance import engine_table, service_table

_ROOT = Path(__file__).parents[3]
_DOCS, _RESULTS = _ROOT / "docs", _ROOT / "benchmarks" / "results"
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
    return {
        "rounds": [{}] * 3,
        "name": name,
        "precision": next((one for one in ("int8", "bfloat16") if name.endswith(one)), "float32"),
        "versions": {"x": "1"},
        "note": None,
        "error": error,
        "figures": figures if ratio else None,
    }


def test_only_the_named_section_changes() -> None:
    page = replace_sections(_PAGE, {"first": "new"})

    assert page == _PAGE.replace("\nold\n", "\n\nnew\n\n")


def test_replacing_is_idempotent() -> None:
    contents = {"first": "| a |\n| --- |\n| \\1 |", "second": "b"}

    once = replace_sections(_PAGE, contents)

    assert replace_sections(once, contents) == once
    assert "Prose stays." in once


def test_every_section_is_on_exactly_one_page() -> None:
    names = [name for page in sorted(_DOCS.rglob("*.md")) for name in section_names(page.read_text(encoding="utf-8"))]

    assert sorted(names) == sorted(contents(_RESULTS))


def test_the_pages_show_the_recorded_measurements() -> None:
    for page, text in pages(_DOCS, contents(_RESULTS)):
        assert page.read_text(encoding="utf-8") == text, f"{page} is stale: run python -m benchmarks.report"


def test_every_plot_exists() -> None:
    for page in _DOCS.rglob("*.md"):
        for image in re.findall(r"\]\(((?:\.\./)*images/[\w-]+\.svg)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / image).is_file(), f"{page}: {image}"


def test_plots_are_reachable_from_a_page_in_a_subfolder(tmp_path: Path) -> None:
    page = tmp_path / "appendix" / "page.md"
    page.parent.mkdir()
    page.write_text("<!-- generated: plot -->\n<!-- end -->\n")

    ((_, text),) = pages(tmp_path, {"plot": "![a plot](images/plot.svg)"})

    assert "![a plot](../images/plot.svg)" in text


def test_every_engine_has_a_row() -> None:
    result = json.loads((_RESULTS / "engine-cpu.json").read_text(encoding="utf-8"))

    assert engine_table(result).count("\n| ") == 1 + len(result["results"])


def test_peers_are_sorted_by_cost_with_unmeasured_peers_last() -> None:
    settings = {"num_clients": 16, "num_pairs": 1600, "mean_pair_tokens": 126.0, "num_rounds": 3, "num_threads": 2}
    record = _ORIGIN | {
        "settings": settings | {"logit_range": 0.5},
        "bare": [{"cpu_s_per_1k_pairs": 40.0, "pairs_per_s": 30.0}],
        "contenders": [_contender("broken", None), _contender("slow", 1.5), _contender("ours-float32", 0.5)],
    }

    rows = peers_table(record).splitlines()[2:6]

    assert [row.split(" | ")[0] for row in rows] == [
        "| bare float32 forward pass, no server",
        "| **ours-float32**",
        "| slow",
        "| broken",
    ]
    assert "| broken | x 1 | not measured: did not start: no room |" in versions_table(record)


def test_the_summary_compares_ours_with_the_best_peer_of_the_same_kind(tmp_path: Path) -> None:
    sets = {"processor": ["AVX2", "AVX-512"], "masks": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}
    contenders = [
        *(_contender("ours-float32", 0.6), _contender("slow", 1.5), _contender("fast", 0.75)),
        *(_contender("ours-bfloat16", 0.5), _contender("ours-int8", 0.3), _contender("fast-int8", 0.4)),
        *(_contender("fast-bfloat16", 0.9), _contender("broken-int8", None)),
    ]
    record = _ORIGIN | {"settings": {"mean_pair_tokens": 390.2}, "contenders": contenders}
    record["hardware"] = {"cpu": "a CPU", "instruction_sets": sets}
    (tmp_path / "peers-zen4-avx2-390.json").write_text(json.dumps(record))

    setup, rest = "| AVX2 (masked) | 390", "| 0.001 | 0.001 |  |  |"
    head, _, *rows = summary_table(tmp_path, "zen4").splitlines()
    assert head.startswith("| instructions | tokens per pair | precision |")
    assert rows == [
        f"{setup} | float32 | 10.0 (ours-float32) | 10.0 (fast) | 0.80 {rest}",
        f"{setup} | bfloat16 or int8 | 10.0 (ours-int8) | 10.0 (fast-int8) | 0.75 {rest}",
    ]


def test_the_limits_are_part_of_the_table() -> None:
    bare = [{"cpu_s_per_1k_pairs": 40.0, "pairs_per_s": 30.0, "products_cpu_s_per_1k_pairs": {"int8": 5.0}}]
    settings = {"num_clients": 16, "num_pairs": 640, "mean_pair_tokens": 126.0, "num_rounds": 3, "num_threads": 2}
    contenders = [_contender("far-behind", 2.0) | {"rounds": [{}]}]
    record = _ORIGIN | {"settings": settings | {"logit_range": 0.5}, "bare": bare, "contenders": contenders}

    table = peers_table(record)

    assert "| its matrix products alone, in int8 | 5.0 | 0.12 |" in table
    assert "medians of 3 rounds, or one round of a server that is far behind;" in table


def test_missing_figures_leave_empty_cells() -> None:
    probe = {"small_alone_s": 0.1, "small_behind_big_s": 0.1, "big_s": 0.1, "wait_share": None}

    table = service_table(_ORIGIN | {"results": {"loads": {"1 client": _LOAD}, **probe}})

    assert "| 1 client |  | 2.00 | 3.00 | 4 |  | 2 x 503 |" in table
    assert "no wait was measured" in table


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ({}, "yes"),
        ({"address_is_fixed": True}, "yes, through a proxy"),
        ({"refused_today": "a reason"}, "**refused**: a reason"),
        ({"calls_first": [{"path": "/info"}, {"path": "/x", "refused_today": "no route"}]}, "**refused**: no route"),
        (
            {"refused_today": "a reason", "works_with": {"paths": {"/v1/rerank": {"prefer": "voyage"}}}},
            "with `paths: {/v1/rerank: {prefer: voyage}}`; by default, refused: a reason",
        ),
        (
            {"long_text_refused_today": "too long", "works_with": {"limits": {"truncate": "END"}}},
            "yes; long texts need `limits: {truncate: END}`",
        ),
        ({"long_text_refused_today": "a reason"}, "yes; long texts are refused: a reason"),
        ({"wants_errors": True}, "yes; it asks for an error if a text is long"),
        ({"largest_batch": 9, "larger_batch_refused_today": "over a limit"}, "yes; not with 9 texts: over a limit"),
    ],
)
def test_the_list_of_applications_says_what_the_marks_say(marks: dict[str, Any], expected: str) -> None:
    assert verdict(marks) == expected
