"""Records of a batch input, each with one query and its passages, and the parser of the input's rows."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rerank_service.errors import BatchError

__all__ = ["FIELDS", "Position", "QueryRecord", "Source", "TextPair", "pairs_of", "parse_record", "query_text"]

FIELDS = ("query_id", "query", "passage_id", "passage", "passage_ids", "passages")
"""Fields that are read from a row; other columns are ignored."""

_SHAPES = "a row needs query and passage, or query and a list of passages"


class Position(NamedTuple):
    """Start of a record, from which reading can resume."""

    offset: int
    """Offset in bytes, or in rows for a Parquet file."""
    number: int
    """Line number, or row number in a Parquet file, counted from 1."""


class QueryRecord(NamedTuple):
    """A query with at least one passage."""

    position: Position
    query_id: str
    query: str
    passage_ids: tuple[str, ...]
    passages: tuple[str, ...]


class TextPair(NamedTuple):
    """A query with one passage."""

    number: int
    """Line or row number of the pair's record."""
    query_id: str
    query: str
    passage_id: str
    passage: str


class Source(Protocol):
    """An input that can be read in constant memory, beginning at any record."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that make up the input."""

    @property
    def can_seek(self) -> bool:
        """Whether reading can start at a later record without reading the records before it."""

    @property
    def extent(self) -> int:
        """`Position.offset` at the end of the input; for a BEIR folder, at the end of its candidates file."""

    def records(self, start: Position | None = None) -> Iterator[QueryRecord]:
        """Yields the records in order, beginning at `start`. Raises `BatchError` with file, line and field."""


def pairs_of(records: Iterator[QueryRecord]) -> Iterator[TextPair]:
    """Pairs of the records, in order."""
    for position, query_id, query, passage_ids, passages in records:
        for passage_id, passage in zip(passage_ids, passages, strict=True):
            yield TextPair(position.number, query_id, query, passage_id, passage)


def query_text(text: str, field: str) -> str:
    """Returns `text`, the value of `field`. Raises `BatchError` if the text is blank."""
    if not text.strip():
        raise BatchError(f"{field} is blank; give some text")
    return text


def parse_record(row: Mapping[str, Any], position: Position, path: Path) -> QueryRecord:
    """Parses a row with one passage or with a list of passages. `query_id` defaults to the row's number, and
    `passage_id` to the passage's index from 0, as in the API."""
    place = f"{path}, line {position.number}"
    parse = _RowParser(row, place)
    query_id = parse.identifier("query_id", str(position.number))
    query = query_text(parse.text("query"), f"{place}: query")
    if row.get("passages") is not None:
        texts, ids = parse.passages()
    else:
        texts, ids = [parse.text("passage")], [parse.identifier("passage_id", "0")]
    return QueryRecord(position, query_id, query, tuple(ids), tuple(texts))


class _RowParser:
    def __init__(self, row: Mapping[str, Any], place: str) -> None:
        self._row = row
        self._place = place

    def text(self, name: str) -> str:
        value = self._row.get(name)
        if value is None:
            raise BatchError(f"{self._place}: {name} is missing; {_SHAPES}")
        return self._text(value, name)

    def identifier(self, name: str, default: str) -> str:
        return self._identifier(self._row.get(name), name, default)

    def passages(self) -> tuple[list[str], list[str]]:
        values = self._list("passages", self._row["passages"])
        if not values:
            raise BatchError(f"{self._place}: passages is empty; {_SHAPES}")
        texts = [self._text(value, f"passages.{index}") for index, value in enumerate(values)]
        given = self._row.get("passage_ids")
        own = [value.get("id") if isinstance(value, Mapping) else None for value in values]
        ids = own if given is None else self._list("passage_ids", given)
        if len(ids) != len(texts):
            raise BatchError(f"{self._place}: passage_ids has {len(ids)} entries, but passages has {len(texts)}")
        return texts, [self._identifier(value, f"passage_ids.{index}", str(index)) for index, value in enumerate(ids)]

    def _list(self, name: str, value: Any) -> Sequence[Any]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise BatchError(f"{self._place}: {name} is not a list")
        return value

    def _text(self, value: Any, name: str) -> str:
        if isinstance(value, Mapping):  # {"text": ...}, as in a request to the service
            value = value.get("text")
        if not isinstance(value, str):
            raise BatchError(f"{self._place}: {name} is not text")
        return value

    def _identifier(self, value: Any, name: str, default: str) -> str:
        if value is None or value == "":
            return default
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BatchError(f"{self._place}: {name} is neither text nor an integer")
        return str(value)
