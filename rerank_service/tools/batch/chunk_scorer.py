"""Scores chunks of a batch job in one process, which holds an engine and the open input."""

import json
import resource
import sys
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from rerank_service.config import ModelConfig
from rerank_service.engine import Agree, Engine, load_engine
from rerank_service.engine.protocol import choose_here
from rerank_service.errors import BatchError, NonFiniteLogit, PairTooLong, QueryTooLong, RerankError
from rerank_service.messages import Fitting
from rerank_service.tools.batch.chunks import Chunk, ChunkReader
from rerank_service.tools.batch.records import TextPair
from rerank_service.tools.batch.sources import InputFiles, open_source

__all__ = ["ChunkScorer", "ScoredChunk", "ScoringTask", "peak_memory_bytes"]


@dataclass(frozen=True)
class ScoringTask:
    """Everything that a process needs to score chunks of a job."""

    files: InputFiles
    model: ModelConfig
    fitting: Fitting


class ScoredChunk(NamedTuple):
    """Scores of one chunk."""

    chunk: int
    """Index of the chunk."""
    lines: bytes
    """One JSON object per pair, in the order of the input: query_id, passage_id, logit."""
    num_tokens: int
    num_truncated: int
    """Number of pairs that were truncated to the window."""
    num_unscored: int
    """Number of truncated pairs whose query fills the window, so no token of the passage was scored."""
    engine: str
    """Kind, device and precision of the engine."""
    peak_memory_bytes: int
    """Peak memory of the process so far."""


class ChunkScorer:
    """Scores chunks with one model, which the constructor loads.

    The constructor raises `CheckpointError`, or `BatchError` for an unreadable input.
    """

    def __init__(
        self,
        task: ScoringTask,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        agree: Agree = choose_here,
    ) -> None:
        self._reader = ChunkReader(open_source(task.files))
        self._path = task.files.candidates or task.files.path
        self._fitting = task.fitting
        self._engine: Engine[Any] = load_engine(task.model, num_cpus, num_gpus=num_gpus, agree=agree)
        self._batch_tokens = task.model.batching.max_batch_tokens

    def score(self, chunk: Chunk) -> ScoredChunk:
        """Scores a chunk. Raises `BatchError` with the line of a pair that cannot be scored."""
        # A late import: it imports torch, which takes seconds unless the engine has already imported it.
        from rerank_service.engine.score_all import score_passages

        pairs = self._reader.read(chunk)
        by_query = ((query, [pair.passage for pair in group]) for query, group in groupby(pairs, attrgetter("query")))
        try:
            encoded, logits = score_passages(self._engine, by_query, self._fitting, self._batch_tokens)
        except PairTooLong as error:
            number, what = pairs[error.index].number, "query" if isinstance(error, QueryTooLong) else "pair"
            raise BatchError(
                f"{self._path}, line {number}: the {what} has {error.num_tokens} tokens, but the window has only "
                f"{error.max_tokens}; use --truncate END to truncate it"
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
    """Peak memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS reports bytes, Linux KiB


def _line(pair: TextPair, logit: float) -> bytes:
    row = {"query_id": pair.query_id, "passage_id": pair.passage_id, "logit": logit}
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
