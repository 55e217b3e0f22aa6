"""The tables of `docs/quality.md`, of a record of figures. Measures nothing."""

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["TABLES"]

Record = Mapping[str, Any]


def _with_interval(row: Record, _: Record) -> str:
    low, high = row["interval"]
    return f"{row['ndcg@10']:.3f} [{low:.3f}, {high:.3f}]"


def _with_difference(row: Record, _: Record) -> str:
    low, high = row["difference_interval"]
    shown = f"{row['ndcg@10']:.3f}"
    return shown if low == high == 0 else f"{shown} ({row['difference']:+.3f} [{low:+.3f}, {high:+.3f}])"


def _tokens(row: Record, result: Record) -> str:
    return f"{row['tokens'] / result['tokens']:.2f}"


def _stability(row: Record, _: Record) -> str:
    return f"{row['largest_logit_difference']:.1g}; {row['queries_that_changed']} queries"


def _table(section: str, cell: Callable[[Record, Record], str]) -> Callable[[Record], str]:
    """A row a variant, a column a set."""

    def table(record: Record) -> str:
        results = [result for result in record["sets"] if section in result]
        lines = ["| | " + " | ".join(result["label"] for result in results) + " |", "|---|" + "---:|" * len(results)]
        for place, row in enumerate(results[0][section]):
            cells = [cell(result[section][place], result) for result in results]
            lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    return table


def _sets(record: Record) -> str:
    lines = ["| set | queries | passages | candidates | queries with a relevant one | cut at 256 tokens |"]
    lines.append("|---|---:|---:|---|---:|---:|")
    for result in record["sets"]:
        lines.append(
            f"| {result['label']} | {result['num_queries']:,} | {result['num_passages']:,} | {result['candidates']} "
            f"| {result['found']:.1%} | {result['truncated']:.0%} |"
        )
    return "\n".join(lines)


def _origin(record: Record) -> str:
    hardware, versions = record["hardware"], record["versions"]
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores; {record['date'][:10]}, commit {record['commit'][:12]}; "
        f"torch {versions['torch']}, transformers {versions['transformers']}; `{record['command']}`."
    )


TABLES: Mapping[str, Callable[[Record], str]] = {
    "quality-sets": _sets,
    "quality-scorers": _table("scorers", _with_interval),
    "quality-truncation": _table("truncation", _with_difference),
    "quality-long": _table("long", _with_difference),
    "quality-long-tokens": _table("long", _tokens),
    "quality-order": _table("order", _stability),
    "quality-origin": _origin,
}
