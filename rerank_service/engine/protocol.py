"""The contract of every engine: takes pairs, knows their lengths early, returns one float32 logit for each pair.

The scheduler uses nothing else of an engine.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rerank_service.messages import Truncate

__all__ = [
    "BatchScorer",
    "CacheCounts",
    "DeviceFacts",
    "EncodedPair",
    "Engine",
    "PairT",
    "PendingLogits",
    "TokenIds",
    "TokenSpan",
    "Truncate",
]

TokenIds = NDArray[np.int32]  # [L]
TokenSpan = tuple[int, int]
"""Start and end of a token in its text, in characters."""


class CacheCounts(NamedTuple):
    """Look-ups in an engine's passage cache since the engine was loaded."""

    hits: int
    misses: int


class DeviceFacts(NamedTuple):
    """Memory that an engine's device holds, and the device's peak speed."""

    memory_bytes: int
    """Memory that torch holds on a GPU; the whole process's on a CPU; 0 where the system does not report it."""
    peak_tokens_per_s: float | None
    """Speed at which the model's linear layers alone would take the device's dense bfloat16 peak. Null: peak unknown.

    A speed divided by this is the model FLOP utilisation.
    """


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """A tokenised pair, truncated to the window."""

    token_ids: TokenIds
    """The tokens that the window limits: of the whole templated pair; in a late-interaction engine of the passage."""
    num_tokens: int
    """Tokens of query and passage with special tokens: billed, and counted against the size of a batch."""
    is_truncated: bool
    """Whether the pair was longer than the window."""
    is_passage_cut: bool = field(default=False, kw_only=True)
    """Whether a part of the passage was cut, and not only of the query."""
    is_unscored: bool = field(default=False, kw_only=True)
    """Whether no token is left of a passage that has some, so that the logit says nothing about it."""


PairT = TypeVar("PairT", bound=EncodedPair)
_PairT_contra = TypeVar("_PairT_contra", bound=EncodedPair, contravariant=True)


class PendingLogits(Protocol):
    """A forward pass in flight."""

    @property
    def is_ready(self) -> bool:
        """Whether `wait` returns at once."""
        ...

    def wait(self) -> list[float]:
        """Float32 logits `[B]`, unbounded, higher is more relevant. Raises `DeviceFailed` if the device is lost."""
        ...


class BatchScorer(Protocol[_PairT_contra]):
    """The part of an engine that runs batches on a device."""

    @property
    def max_in_flight(self) -> int:
        """Batches that may be in flight at once; 1 if `launch` returns only when its batch is done."""
        ...

    @property
    def memory_tokens(self) -> int | None:
        """Tokens of a batch that fit in memory; null: unknown. Shrinks when a batch did not fit."""
        ...

    def launch(self, pairs: Sequence[_PairT_contra]) -> PendingLogits:
        """Starts one forward pass. Callers limit the tokens of a batch, and call from one thread at a time.

        Raises `DeviceMemoryExhausted` if a single pair does not fit in memory, `DeviceFailed` if the device is lost.
        """
        ...


class Engine(BatchScorer[PairT], Protocol[PairT]):
    """A model on a device. Several threads may call `tokenise` at once."""

    @property
    def window_tokens(self) -> int:
        """Longest pair in tokens."""
        ...

    @property
    def default_batch_tokens(self) -> int:
        """Tokens of a batch; larger batches are hardly faster on this device."""
        ...

    @property
    def cache_counts(self) -> CacheCounts:
        """Look-ups in the passage cache; zeros if there is none."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Most memory that the engine's caches may take on the device."""
        ...

    def caches_off(self) -> AbstractContextManager[None]:
        """Within this context, caches neither answer nor store nor count anything."""
        ...

    @property
    def device_facts(self) -> DeviceFacts:
        """Current facts about the device."""
        ...

    @property
    def description(self) -> str:
        """Kind, device and precision, for logs."""
        ...

    @property
    def precision(self) -> str:
        """Coarsest type the model computes in: `float32`, `float16`, `bfloat16`, `int8` or `float8`."""
        ...

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[PairT]:
        """Pairs in the order of `passages`. Raises `PairTooLong` under `Truncate.NONE`."""
        ...

    def passage_room(self, query: str) -> int:
        """Tokens of a passage that fit beside this query; 0 if the query fills the window."""
        ...

    def token_spans(self, texts: Sequence[str]) -> list[list[TokenSpan]]:
        """Spans of each text's tokens, without special tokens."""
        ...

    def score(self, pairs: Sequence[PairT]) -> list[float]:
        """Float32 logits `[B]` in the order of `pairs`: `launch`, then `wait`."""
        ...
