"""Splits an input into chunks with a fixed number of pairs, and reads individual chunks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from rerank_service.errors import BatchError
from rerank_service.tools.batch.records import Position, Source, TextPair, pairs_of

__all__ = ["Chunk", "ChunkPlan", "ChunkReader", "plan_chunks"]

_REPORTED_RECORDS = 10_000
"""Number of records between two progress reports."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive pairs that are scored together and saved in one part."""

    index: int
    first_pair: int
    """Index of the chunk's first pair in the whole input."""
    num_pairs: int
    start: Position
    """Position of the record that contains the chunk's first pair."""
    skip_pairs: int
    """Number of pairs at the start of this record that belong to earlier chunks."""


@dataclass(frozen=True)
class ChunkPlan:
    """All chunks of an input, in order."""

    num_pairs: int
    chunks: tuple[Chunk, ...]


def plan_chunks(
    source: Source, chunk_pairs: int, on_progress: Callable[[Position], None] = lambda _: None
) -> ChunkPlan:
    """Plans the chunks while reading and checking the whole input once.

    Raises `BatchError` for the first invalid row, or for an empty input.
    """
    starts: list[tuple[Position, int]] = []
    num_pairs = 0
    for record in source.records():
        end = num_pairs + len(record.passages)
        for first in range(-(-num_pairs // chunk_pairs) * chunk_pairs, end, chunk_pairs):
            starts.append((record.position, first - num_pairs))
        num_pairs = end
        if record.position.number % _REPORTED_RECORDS == 0:
            on_progress(record.position)
    if num_pairs == 0:
        raise BatchError(f"{source.files[-1]} has no pairs")
    chunks = (
        Chunk(index, index * chunk_pairs, min(chunk_pairs, num_pairs - index * chunk_pairs), start, skip)
        for index, (start, skip) in enumerate(starts)
    )
    return ChunkPlan(num_pairs, tuple(chunks))


class ChunkReader:
    """Reads chunks in any order; ascending order is the fastest."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._pairs: Iterator[TextPair] = iter(())
        self._next_pair: int | None = None

    def read(self, chunk: Chunk) -> list[TextPair]:
        """Pairs of a chunk. Raises `BatchError` if the input has become shorter."""
        ahead = None if self._next_pair is None else chunk.first_pair - self._next_pair
        if ahead is None or ahead < 0 or (ahead > 0 and self._source.can_seek):
            self._pairs = pairs_of(self._source.records(chunk.start))
            ahead = chunk.skip_pairs
        pairs = list(islice(self._pairs, ahead, ahead + chunk.num_pairs))
        self._next_pair = chunk.first_pair + chunk.num_pairs
        if len(pairs) != chunk.num_pairs:
            raise BatchError(f"{self._source.files[-1]} has changed: chunk {chunk.index} is incomplete")
        return pairs
