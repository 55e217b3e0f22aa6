"""docs/capacity.md shows what is recorded."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import replace_sections
from benchmarks.simulated_plots import SECTIONS

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs" / "capacity.md").read_text(encoding="utf-8")


def recorded(file: str) -> Any:
    return json.loads((_ROOT / "benchmarks" / "results" / file).read_text(encoding="utf-8"))


def test_every_table_has_its_place() -> None:
    assert sorted(re.findall(r"<!-- generated: ([\w-]+) -->", _PAGE)) == sorted(SECTIONS)


@pytest.mark.parametrize("name", SECTIONS)
def test_tables_are_those_of_the_recorded_figures(name: str) -> None:
    file, shown = SECTIONS[name]

    assert replace_sections(_PAGE, {name: shown(recorded(file))}) == _PAGE


def test_plots_are_there() -> None:
    for image in re.findall(r"\]\((images/[\w-]+\.svg)\)", _PAGE):
        assert (_ROOT / "docs" / image).is_file()


def test_throughput_and_quiet_waits_are_within_fifteen_percent() -> None:
    """Of the real stack's; the first open-load runs had other work beside them (the page says so)."""
    rows = recorded("plan-validation.json")["results"]
    second_runs = rows["rows"][4:]

    assert {row["replicas"] for row in second_runs} == {2, 4, 8}
    for row in rows["rows"]:
        assert row["tokens_per_s"]["ratio"] == pytest.approx(1, abs=0.05)
    for row in [rows["rows"][0], *second_runs, rows["router"]]:
        for name in ("p50_s", "p95_s", "p99_s"):
            assert row[name]["ratio"] == pytest.approx(1, abs=0.15)
