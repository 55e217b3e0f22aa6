"""BEIR folders as batch input; a TREC run or a qrels file names the pairs to score.

Passages are looked up in an index on disk, so neither the corpus nor the candidates need to fit in memory. A folder
contains `corpus.jsonl` {_id, title, text} and `queries.jsonl` {_id, text}, as in BEIR (arXiv 2104.08663).
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rerank_service.errors import BatchError
from rerank_service.tools.batch.records import Position, QueryRecord, query_text
from rerank_service.tools.batch.text_files import json_rows, open_input, positioned_lines

__all__ = ["CORPUS", "QUERIES", "BeirCandidates", "Candidate", "build_index", "candidates", "field", "passage_text"]

CORPUS = "corpus.jsonl"
QUERIES = "queries.jsonl"

_PASSAGE_COLUMN = {3: 1, 4: 2, 6: 2}
"""Index of the column with the passage id, by the file's number of columns: 3 for BEIR qrels, 4 for TREC qrels, 6 for a
TREC run."""
_HEADERS = ("query-id", "query_id", "qid", "query")


class Candidate(NamedTuple):
    """A line of a TREC run or of a qrels file."""

    position: Position
    query_id: str
    passage_id: str
    value: str
    """Relevance grade in qrels, score in a run."""


def field(row: Mapping[str, Any], name: str, place: str) -> str:
    """Value of a text field of a row. Raises `BatchError` if the field is missing or not text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise BatchError(f"{place}: {name} is {'missing' if value is None else 'not text'}")
    return value


def passage_text(row: Mapping[str, Any], place: str) -> str:
    """Title and text of a passage, joined by a space."""
    return f"{row.get('title') or ''} {field(row, 'text', place)}".strip()


def candidates(path: Path, start: Position | None = None) -> Iterator[Candidate]:
    """Reads a TREC run (6 columns), TREC qrels (4) or BEIR qrels (3, after a header line), beginning at `start`."""
    for position, line in positioned_lines(path, start):
        columns = [column.strip() for column in (line.split("\t") if line.count("\t") == 2 else line.split())]
        if position.number == 1 and columns[0] in _HEADERS:
            continue
        if len(columns) not in _PASSAGE_COLUMN:
            raise BatchError(
                f"{path}, line {position.number}: {len(columns)} columns; a TREC run has 6, TREC qrels have 4 "
                "and BEIR qrels have 3"
            )
        value = columns[4] if len(columns) == 6 else columns[-1]
        yield Candidate(position, columns[0], columns[_PASSAGE_COLUMN[len(columns)]], value)


def build_index(folder: Path, index: Path) -> None:
    """Writes an index with the position of every query and passage in its file. Raises `BatchError` for a missing or
    repeated id."""
    index.unlink(missing_ok=True)
    with sqlite3.connect(index) as database:
        for table, name in (("queries", QUERIES), ("passages", CORPUS)):
            database.execute(f"CREATE TABLE {table} (id TEXT PRIMARY KEY, place INTEGER, line INTEGER) WITHOUT ROWID")
            path = folder / name
            for position, row in json_rows(path):
                place = f"{path}, line {position.number}"
                try:
                    database.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", (field(row, "_id", place), *position))  # noqa: S608
                except sqlite3.IntegrityError:
                    raise BatchError(f"{place}: _id {row['_id']!r} occurs twice") from None
    database.close()


class BeirCandidates:
    """Pairs named by a TREC run or a qrels file, in the order of its lines."""

    can_seek = True

    def __init__(self, folder: Path, candidates_path: Path, index: Path) -> None:
        self._folder = folder
        self._candidates = candidates_path
        self._index = index
        self.files = (folder / CORPUS, folder / QUERIES, candidates_path)
        self.extent = candidates_path.stat().st_size

    def records(self, start: Position | None = None) -> Iterator[QueryRecord]:
        database = sqlite3.connect(f"file:{self._index}?mode=ro", uri=True)
        try:
            with open_input(self._folder / CORPUS) as corpus, open_input(self._folder / QUERIES) as queries:
                passages = _Table(database, "passages", corpus)
                asked = _Table(database, "queries", queries)
                for candidate in candidates(self._candidates, start):
                    place = f"{self._candidates}, line {candidate.position.number}"
                    query = field(asked.row(candidate.query_id, f"{place}: query"), "text", str(self._folder / QUERIES))
                    query_text(query, f"{place}: text of query {candidate.query_id!r} in {self._folder / QUERIES}")
                    passage = passages.row(candidate.passage_id, f"{place}: passage")
                    text = passage_text(passage, str(self._folder / CORPUS))
                    yield QueryRecord(candidate.position, candidate.query_id, query, (candidate.passage_id,), (text,))
        finally:
            database.close()


class _Table:
    """Looks up rows of a JSONL file by id. The last row is cached, since consecutive candidates often share a query."""

    def __init__(self, database: sqlite3.Connection, name: str, file: BinaryIO) -> None:
        self._database = database
        self._statement = f"SELECT place FROM {name} WHERE id = ?"  # noqa: S608 - a constant name
        self._file = file
        self._last: tuple[str, dict[str, Any]] | None = None

    def row(self, identifier: str, place: str) -> dict[str, Any]:
        if self._last is None or self._last[0] != identifier:
            found = self._database.execute(self._statement, (identifier,)).fetchone()
            if found is None:
                raise BatchError(f"{place} {identifier!r} is not in the BEIR folder")
            self._file.seek(found[0])
            self._last = (identifier, json.loads(self._file.readline().decode("utf-8-sig")))
        return self._last[1]
