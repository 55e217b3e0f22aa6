"""Keeps the results for each fault in a file that processes share, and shows them as a table and as one JSON line."""

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.load.traffic import Verdicts

__all__ = ["LEDGER_ENV", "json_line", "read", "record", "table"]

LEDGER_ENV = "CHAOS_LEDGER"
"""Environment variable that names the file to which `record` appends. Without this variable, `record` only prints."""

_HEADS = ("fault", "requests", "right", "wrong", "lost", "hung", "failed")
_HEADS_S = ("longest request", "longest time without an answer")


def record(fault: str, verdicts: Verdicts) -> None:
    """Adds the results of the requests under one fault."""
    entry = {"fault": fault, **asdict(verdicts), "failed": dict(verdicts.failed)}  # `asdict` cannot copy a Counter
    print("\n" + _row(entry), flush=True)
    if path := os.environ.get(LEDGER_ENV):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Returns all entries in the order of the run."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(entries: list[dict[str, Any]]) -> str:
    """A Markdown table, as in `docs/reliability.md`."""
    heads = (*_HEADS, *_HEADS_S)
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *map(_row, entries)])


def json_line(entries: list[dict[str, Any]], is_passed: bool) -> str:
    """Totals over all faults."""
    names = ("requests", "wrong", "lost", "doubled", "hung")
    failed = sum((Counter(entry["failed"]) for entry in entries), Counter[str]())
    totals = {name: sum(entry[name] for entry in entries) for name in names}
    return json.dumps({"passed": is_passed, "faults": len(entries), **totals, "failed": dict(failed)})


def _row(entry: dict[str, Any]) -> str:
    failed = ", ".join(f"{count} x {cause}" for cause, count in entry["failed"].items()) or "0"
    counts = [f"{entry[name]:,}" for name in ("requests", "ok", "wrong", "lost", "hung")]
    seconds = [f"{entry[name]:.1f} s" for name in ("longest_s", "longest_gap_s")]
    return f"| {' | '.join([entry['fault'], *counts, failed, *seconds])} |"
