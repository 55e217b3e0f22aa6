"""One process's part of a job: an engine and an open input, chunk in, scored lines out. No Ray, no output."""

import json
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from rerank_service.config import ModelConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.errors import BatchError, NonFiniteLogit, PairTooLong, RerankError
from rerank_service.messages import Fitting
from rerank_service.tools.batch.chunks import Chunk, ChunkReader
from rerank_service.tools.batch.records import TextPair
from rerank_service.tools.batch.sources import InputFiles, open_source

__all__ = ["ChunkScorer", "ScoredChunk", "ScoringTask", "peak_memory_bytes"]


@dataclass(frozen=True)
class ScoringTask:
    """All that a process needs to score chunks of a job."""

    files: InputFiles
    model: ModelConfig
    fitting: Fitting


class ScoredChunk(NamedTuple):
    """What a chunk has become."""

    chunk: int
    """Its index."""
    lines: bytes
    """One JSON object a pair, in the input's order: query_id, passage_id, logit."""
    num_tokens: int
    num_truncated: int
    """Pairs of which a part was not scored."""
    num_unscored: int
    """Pairs, among the truncated ones, of which no token of the passage was scored."""
    engine: str
    """That scored it: kind, device and precision."""
    peak_memory_bytes: int
    """Of the process, so far."""


class ChunkScorer:
    """Loads the model when made. Raises `CheckpointError`, and `BatchError` for an input it cannot open."""

    def __init__(self, task: ScoringTask, num_cpus: float | None = None) -> None:
        self._reader = ChunkReader(open_source(task.files))
        self._path = task.files.candidates or task.files.path
        self._fitting = task.fitting
        self._engine: Engine[Any] = load_engine(task.model, num_cpus)
        self._batch_tokens = task.model.batching.max_batch_tokens

    def score(self, chunk: Chunk) -> ScoredChunk:
        """Raises `BatchError` naming the line of a pair that cannot be scored."""
        from rerank_service.engine.score_all import score_passages  # torch takes seconds; `load_engine` has them by now

        pairs = self._reader.read(chunk)
        try:
            encoded, logits = score_passages(self._engine, _by_query(pairs), self._fitting, self._batch_tokens)
        except PairTooLong as error:
            number = pairs[error.index].number
            raise BatchError(
                f"{self._path}, line {number}: the pair has {error.num_tokens} tokens and the window "
                f"{error.max_tokens}; --truncate END cuts it"
            ) from None
        except NonFiniteLogit as error:
            number = pairs[error.first].number
            raise BatchError(
                f"{self._path}, line {number}: the model's logit is not a finite number; try --dtype float32"
            ) from None
        except RerankError as error:
            raise BatchError(f"{self._path}, lines {pairs[0].number} to {pairs[-1].number}: {error.message}") from None
        return ScoredChunk(
            chunk=chunk.index,
            lines=b"".join(_line(pair, logit) for pair, logit in zip(pairs, logits, strict=True)),
            num_tokens=sum(encoded.num_tokens),
            num_truncated=sum(encoded.is_truncated),
            num_unscored=sum(encoded.is_unscored),
            engine=self._engine.description,
            peak_memory_bytes=peak_memory_bytes(),
        )


def peak_memory_bytes() -> int:
    """Most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _by_query(pairs: Sequence[TextPair]) -> Iterator[tuple[str, list[str]]]:
    for query, group in groupby(pairs, key=attrgetter("query")):
        yield query, [pair.passage for pair in group]


def _line(pair: TextPair, logit: float) -> bytes:
    row = {"query_id": pair.query_id, "passage_id": pair.passage_id, "logit": logit}
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
