"""Saves the rows of the GPU benchmark as they come, and prints them as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.limits import Rates
from benchmarks.on_gpu.measure import Figures
from benchmarks.provenance import save_record

__all__ = ["Record", "table"]

_HEADS = ("model", "ran as", "load", "tokens", "pairs/s", "limit", "share", "MFU", "aim [E]", "run, ms", "error (std)")


class Record:
    """The results so far, in a JSON file that is replaced whole with each addition."""

    def __init__(self, path: Path | None, provenance: Mapping[str, Any], rates: Rates) -> None:
        self._path = path
        self.rows: list[Figures] = []
        self._content = dict(provenance) | {
            "product_tflops": {"bfloat16": _tera(rates.bfloat16), "float8": rates.float8 and _tera(rates.float8)},
            "aims": "estimated, not measured",
            "loads": [],
            "skipped": [],
            "results": [],
        }
        self._save()

    def add(self, row: Figures) -> None:
        """Adds, prints and saves a row."""
        self.rows.append(row)
        print(_line(row), flush=True)
        self._content["results"].append(asdict(row))
        self._save()

    def add_load(self, engine: Mapping[str, Any]) -> None:
        """Adds the start-up times of an engine."""
        print("loaded " + " ".join(f"{name}={value}" for name, value in engine.items()), flush=True)
        self._content["loads"].append(dict(engine))
        self._save()

    def add_skipped(self, rows: Sequence[str], reason: str) -> None:
        """Adds rows that were not measured, and why."""
        for row in rows:
            print(f"skipped ({reason}): {row}", flush=True)
        self._content["skipped"] += [{"row": row, "reason": reason} for row in rows]
        self._save()

    def _save(self) -> None:
        if self._path is not None:
            save_record(self._path, self._content)


def table(rows: Sequence[Figures]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
    return "\n".join([*lines, *map(_line, rows)])


def _line(row: Figures) -> str:
    cells = (
        row.model,
        row.ran_as,
        row.load,
        str(row.tokens_per_pair),
        f"{row.pairs_per_s:.1f}",
        f"{row.limit_pairs_per_s:.1f}",
        f"{row.share_of_limit:.0%}",
        f"{row.mfu:.0%}",
        "" if row.aim_pairs_per_s is None else str(row.aim_pairs_per_s),
        f"{row.run_ms:.1f}",
        "not checked" if row.max_logit_error is None else f"{row.max_logit_error:.3f} ({row.logit_std:.2f})",
    )
    return "| " + " | ".join(cells) + " |"


def _tera(rate: float) -> float:
    return round(rate / 1e12, 1)
