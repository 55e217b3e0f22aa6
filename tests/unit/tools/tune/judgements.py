"""A small task that can be learnt: the relevant passage is the one about something blue."""

import json
from pathlib import Path

from rerank_service.tools.evaluation.collection import Collection
from rerank_service.tools.tune.judged import read_judged

__all__ = ["blue_task", "write_pairs"]

_COLOURS = ("red", "green", "grey", "pink")


def write_pairs(path: Path, num_queries: int) -> Path:
    """Judged pairs: for each query, one passage about something blue, and four passages about other colours."""
    rows = []
    for number in range(num_queries):
        query = f"item {number}"
        rows.append({"query": query, "passage": f"blue item {number}"})
        rows += [{"query": query, "passage": f"{colour} item {number}", "relevance": 0} for colour in _COLOURS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def blue_task(folder: Path, num_queries: int) -> Collection:
    """The judged pairs of `write_pairs`."""
    return read_judged(write_pairs(folder / "blue.jsonl", num_queries))
