"""Reads Parquet files in small batches of rows. Needs pyarrow, which the extra `tools` installs."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_service.errors import BatchError
from rerank_service.tools.batch.records import FIELDS, Position, QueryRecord, parse_record
from rerank_service.tools.files import file_problem

__all__ = ["ParquetFile"]

_ROWS_AT_A_TIME = 1_024


class ParquetFile:
    """A Parquet file with text columns, or with one column of lists of text."""

    can_seek = False  # reaching a row requires decoding all rows before it in the same row group

    def __init__(self, path: Path) -> None:
        self._path = path
        self.files = (path,)
        try:
            self.extent: int = pq.read_metadata(path).num_rows
        except OSError as error:
            raise BatchError(file_problem(error, path)) from None
        except pa.ArrowException as error:
            raise BatchError(f"{path} is not a readable Parquet file: {error}") from None

    def records(self, start: Position | None = None) -> Iterator[QueryRecord]:
        first_row = 0 if start is None else start.offset
        for row_number, row in enumerate(self._rows(first_row), first_row):
            yield parse_record(row, Position(row_number, row_number + 1), self._path)

    def _rows(self, first_row: int) -> Iterator[dict[str, Any]]:
        try:
            with pq.ParquetFile(self._path, pre_buffer=False) as file:
                columns = [name for name in FIELDS if name in file.schema_arrow.names]
                sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
                ends = list(accumulate(sizes))
                groups = [index for index, end in enumerate(ends) if end > first_row]
                skip = first_row - (ends[groups[0]] - sizes[groups[0]]) if groups else 0
                for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=groups, columns=columns):
                    yield from batch.slice(skip).to_pylist()
                    skip = max(0, skip - batch.num_rows)
        except OSError as error:
            raise BatchError(file_problem(error, self._path)) from None
        except pa.ArrowException as error:
            raise BatchError(f"{self._path} is not a readable Parquet file: {error}") from None
