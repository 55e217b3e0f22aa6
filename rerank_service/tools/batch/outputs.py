"""Writes scored lines to one file, as JSONL, CSV, Parquet or a TREC run."""

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import IO

from rerank_service.errors import BatchError
from rerank_service.messages import rank_by_logit

__all__ = ["OUTPUT_SUFFIXES", "check_output", "write_output"]

_COLUMNS = ("query_id", "passage_id", "logit")
_ROWS_AT_A_TIME = 16_384
_RUN_TAG = "rerank-service"

Lines = Iterator[bytes]


def check_output(path: Path) -> None:
    """Checks an output path. Raises `BatchError` for an unknown suffix or a folder, and `ImportError` for Parquet
    if pyarrow is missing."""
    if path.suffix.lower() not in _WRITERS:
        raise BatchError(f"{path} must end in one of {', '.join(OUTPUT_SUFFIXES)}")
    if path.is_dir():
        raise BatchError(f"{path} is a folder")
    if path.suffix.lower() == ".parquet":
        import pyarrow  # noqa: F401 - fail before scoring, not after


def write_output(path: Path, lines: Lines, file: IO[bytes]) -> None:
    """Writes the lines in the format that the suffix of `path` selects, in constant memory.

    A TREC run is grouped by query, with passages in descending order of logit. Writing a run keeps the hashes of all
    query ids in memory.
    """
    _WRITERS[path.suffix.lower()](lines, file)


def _write_jsonl(lines: Lines, file: IO[bytes]) -> None:
    for line in lines:
        file.write(line)


def _write_csv(lines: Lines, file: IO[bytes]) -> None:
    text = codecs.getwriter("utf-8")(file)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([row[name] for name in _COLUMNS] for row in map(json.loads, lines))


def _write_parquet(lines: Lines, file: IO[bytes]) -> None:
    import pyarrow as pa  # installed by the extra `tools`
    import pyarrow.parquet as pq

    types = (pa.string(), pa.string(), pa.float64())
    schema = pa.schema(list(zip(_COLUMNS, types, strict=True)))
    with pq.ParquetWriter(file, schema) as writer:
        while rows := [json.loads(line) for line in islice(lines, _ROWS_AT_A_TIME)]:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _write_run(lines: Lines, file: IO[bytes]) -> None:
    seen: set[int] = set()
    for query_id, group in groupby(map(json.loads, lines), key=lambda row: row["query_id"]):
        if hash(query_id) in seen:
            raise BatchError(
                f"query {query_id!r} occurs in several places of the input, so its passages cannot be ranked together: "
                "write JSONL instead, or sort the input by query"
            )
        seen.add(hash(query_id))
        rows = list(group)
        for rank, index in enumerate(rank_by_logit([row["logit"] for row in rows]), 1):
            passage_id, logit = rows[index]["passage_id"], rows[index]["logit"]
            for name in (query_id, passage_id):
                if len(name.split()) != 1 or name != name.strip():
                    raise BatchError(
                        f"{name!r} contains spaces, which a TREC run cannot represent: write JSONL instead"
                    )
            file.write(f"{query_id} Q0 {passage_id} {rank} {logit!r} {_RUN_TAG}\n".encode())


_WRITERS: dict[str, Callable[[Lines, IO[bytes]], None]] = {
    ".jsonl": _write_jsonl,
    ".ndjson": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".trec": _write_run,
    ".run": _write_run,
}
OUTPUT_SUFFIXES = tuple(_WRITERS)
