"""Sections of `docs/quality.md`."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.report.pages import PageSection, ResultFile, cores

__all__ = ["SECTIONS"]

_Row = Mapping[str, Any]
_RESULTS = "quality.json"


def _with_interval(row: _Row, _: _Row) -> str:
    low, high = row["interval"]
    return f"{row['ndcg@10']:.3f} [{low:.3f}, {high:.3f}]"


def _with_difference(row: _Row, _: _Row) -> str:
    low, high = row["difference_interval"]
    shown = f"{row['ndcg@10']:.3f}"
    return shown if low == high == 0 else f"{shown} ({row['difference']:+.3f} [{low:+.3f}, {high:+.3f}])"


def _tokens(row: _Row, result: _Row) -> str:
    return f"{row['tokens'] / result['tokens']:.2f}"


def _stability(row: _Row, _: _Row) -> str:
    return f"{row['largest_logit_difference']:.1g}; {row['queries_that_changed']} queries"


def _table(section: str, cell: Callable[[_Row, _Row], str]) -> PageSection:
    """Table with one row per variant and one column per set."""

    def table(study: ResultFile) -> str:
        results = [result for result in study["sets"] if section in result]
        lines = ["| | " + " | ".join(result["label"] for result in results) + " |", "|---|" + "---:|" * len(results)]
        for place, row in enumerate(results[0][section]):
            cells = [cell(result[section][place], result) for result in results]
            lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    return _RESULTS, table


def _sets(study: ResultFile) -> str:
    lines = ["| set | queries | passages | candidates | queries with a relevant candidate | truncated at 256 tokens |"]
    lines.append("|---|---:|---:|---|---:|---:|")
    for result in study["sets"]:
        lines.append(
            f"| {result['label']} | {result['num_queries']:,} | {result['num_passages']:,} | {result['candidates']} "
            f"| {result['found']:.1%} | {result['truncated']:.0%} |"
        )
    return "\n".join(lines)


def _origin(study: ResultFile) -> str:
    hardware, versions = study["hardware"], study["versions"]
    return (
        f"{hardware['cpu']}, {cores(hardware)}; {study['date'][:10]}, commit {study['commit'][:12]}; "
        f"torch {versions['torch']}, transformers {versions['transformers']}; `{study['command']}`."
    )


SECTIONS: Mapping[str, PageSection] = {
    "quality-sets": (_RESULTS, _sets),
    "quality-scorers": _table("scorers", _with_interval),
    "quality-truncation": _table("truncation", _with_difference),
    "quality-long": _table("long", _with_difference),
    "quality-long-tokens": _table("long", _tokens),
    "quality-order": _table("order", _stability),
    "quality-origin": (_RESULTS, _origin),
}
