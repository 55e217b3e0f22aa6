"""Reads JSONL, CSV and TSV files line by line, beginning at any record."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rerank_service.errors import BatchError
from rerank_service.tools.batch.records import Position, QueryRecord, parse_record
from rerank_service.tools.files import file_problem

__all__ = ["CsvFile", "JsonlFile", "json_rows", "open_input", "positioned_lines"]

csv.field_size_limit(1 << 30)  # a long passage may exceed the default of 131,072 characters


class _NumberedLines:
    """Iterates over the lines of a UTF-8 file and tracks the position of the next line."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self.position = Position(0, 1)

    def seek(self, position: Position) -> None:
        self._file.seek(position.offset)
        self.position = position

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self._file.readline()
        if not raw:
            raise StopIteration
        offset, number = self.position
        self.position = Position(offset + len(raw), number + 1)
        try:
            return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise BatchError(f"{self._path}, line {number}: not UTF-8 ({error.reason})") from None


def positioned_lines(path: Path, start: Position | None = None) -> Iterator[tuple[Position, str]]:
    """Yields the non-blank lines of a file with their positions, beginning at `start`."""
    with open_input(path) as file:
        lines = _NumberedLines(file, path)
        lines.seek(start or lines.position)
        position = lines.position
        for line in lines:
            if line.strip():
                yield position, line
            position = lines.position


def json_rows(path: Path, start: Position | None = None) -> Iterator[tuple[Position, dict[str, Any]]]:
    """Yields the objects of a JSONL file with their positions. Blank lines are skipped."""
    for position, line in positioned_lines(path, start):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BatchError(f"{path}, line {position.number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise BatchError(f"{path}, line {position.number}: not a JSON object")
        yield position, row


def open_input(path: Path) -> BinaryIO:
    """Opens a file. Raises `BatchError` if it cannot be read."""
    try:
        return path.open("rb")
    except OSError as error:
        raise BatchError(file_problem(error, path)) from None


class JsonlFile:
    """A JSONL file: one JSON object per line."""

    can_seek = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self.files = (path,)
        self.extent = path.stat().st_size

    def records(self, start: Position | None = None) -> Iterator[QueryRecord]:
        for position, row in json_rows(self._path, start):
            yield parse_record(row, position, self._path)


class CsvFile:
    """A CSV or TSV file: a header line, then one pair per row. Quoted fields may span several lines."""

    can_seek = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        self.files = (path,)
        self.extent = path.stat().st_size

    def records(self, start: Position | None = None) -> Iterator[QueryRecord]:
        with open_input(self._path) as file:
            lines = _NumberedLines(file, self._path)
            _, header = next(self._rows(lines), (None, []))
            for name in ("query", "passage"):
                if name not in header:
                    raise BatchError(
                        f"{self._path}, line 1: no column {name}; the header has {', '.join(header) or 'no columns'}"
                    )
            if start is not None:
                lines.seek(start)
            for position, row in self._rows(lines):
                if len(row) != len(header):
                    raise BatchError(
                        f"{self._path}, line {position.number}: {len(row)} columns, but the header has {len(header)}"
                    )
                yield parse_record(dict(zip(header, row, strict=True)), position, self._path)

    def _rows(self, lines: _NumberedLines) -> Iterator[tuple[Position, list[str]]]:
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            position = lines.position
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise BatchError(f"{self._path}, line {position.number}: {error}") from None
            if row is None:
                return
            if row:
                yield position, row
