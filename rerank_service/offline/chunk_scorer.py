"""One process's part of a job: an engine and an open input, chunk in, scored lines out. No Ray, no output."""

import json
import math
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from rerank_service.config import ModelConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.engine.windows import EncodedPassages, encode_passages
from rerank_service.errors import BatchError, PairTooLong
from rerank_service.fitting import Fitting
from rerank_service.offline.plan import Chunk, ChunkReader
from rerank_service.offline.records import Pair
from rerank_service.offline.sources import InputFiles, open_source

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
        self._batch_tokens = task.model.batching.max_batch_tokens or self._engine.default_batch_tokens

    def score(self, chunk: Chunk) -> ScoredChunk:
        """Raises `BatchError` naming the line of a pair that cannot be scored."""
        from rerank_service.engine.score_all import score_all  # torch takes seconds; `load_engine` has them by now

        pairs = self._reader.read(chunk)
        encoded = EncodedPassages.joined([self._encode(group) for group in _by_query(pairs)])
        logits = encoded.best(score_all(self._engine, encoded.pairs, self._batch_tokens))
        return ScoredChunk(
            chunk=chunk.index,
            lines=b"".join(self._line(pair, logit) for pair, logit in zip(pairs, logits, strict=True)),
            num_tokens=sum(encoded.num_tokens),
            num_truncated=sum(encoded.is_truncated),
            num_unscored=sum(encoded.is_unscored),
            engine=self._engine.description,
            peak_memory_bytes=peak_memory_bytes(),
        )

    def _encode(self, group: Sequence[Pair]) -> EncodedPassages[Any]:
        passages = [pair.passage for pair in group]
        try:
            return encode_passages(self._engine, group[0].query, passages, self._fitting)
        except PairTooLong as error:
            number = group[error.index].number
            raise BatchError(
                f"{self._path}, line {number}: the pair has {error.num_tokens} tokens and the window "
                f"{error.max_tokens}; --truncate END cuts it"
            ) from None

    def _line(self, pair: Pair, logit: float) -> bytes:
        if not math.isfinite(logit):
            raise BatchError(f"{self._path}, line {pair.number}: the model's logit is {logit}; try --dtype float32")
        row = {"query_id": pair.query_id, "passage_id": pair.passage_id, "logit": logit}
        return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def peak_memory_bytes() -> int:
    """Most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _by_query(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    for _, group in groupby(pairs, key=attrgetter("query")):
        yield list(group)
