"""What every engine is: pairs in, lengths known early, one float32 logit a pair out.

The scheduler works with this contract alone. No Ray, no HTTP here or in any engine.
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
"""Where a token begins in its text, and where it ends, in characters."""


class CacheCounts(NamedTuple):
    """Passages found in an engine's cache, and looked for in vain, since it was loaded."""

    hits: int
    misses: int


class DeviceFacts(NamedTuple):
    """What an engine's device holds and could do at most."""

    memory_bytes: int
    """That torch holds on a GPU; of the whole process on a CPU; 0 where that cannot be told."""
    flops_per_token: float
    """Floating-point operations of the model's linear layers, two for each weight; attention comes on top."""
    peak_flops: float | None
    """Dense peak a second in the engine's precision; null where it is not known."""

    def utilisation(self, tokens_per_s: float) -> float | None:
        """Model FLOP utilisation at that speed."""
        return self.peak_flops and tokens_per_s * self.flops_per_token / self.peak_flops


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """A tokenised pair, cut to the window."""

    token_ids: TokenIds
    """What the window bounds: of the templated pair; of the passage alone in a late-interaction engine."""
    num_tokens: int
    """Tokens of query and passage with the special ones: what is billed and what a batch is filled by."""
    is_truncated: bool
    """Whether the window cut it."""
    is_passage_cut: bool = field(default=False, kw_only=True)
    """Whether it cut the passage, and not only the query."""
    is_unscored: bool = field(default=False, kw_only=True)
    """Whether it left no token of a passage that has some: the logit then says nothing about the passage."""


PairT = TypeVar("PairT", bound=EncodedPair)
_PairT_contra = TypeVar("_PairT_contra", bound=EncodedPair, contravariant=True)


class PendingLogits(Protocol):
    """A forward pass that has been started."""

    @property
    def is_ready(self) -> bool:
        """Whether `wait` returns at once."""
        ...

    def wait(self) -> list[float]:
        """Float32 logits `[B]`, unbounded, higher is more relevant. Raises `DeviceFailed` if the device is lost."""
        ...


class BatchScorer(Protocol[_PairT_contra]):
    """The part of an engine that feeds a device."""

    @property
    def max_in_flight(self) -> int:
        """Batches that may be started before the first is done; 1 where `launch` returns when it is."""
        ...

    @property
    def memory_tokens(self) -> int | None:
        """Tokens of a batch that fit in memory; null: no bound known. Shrinks when a batch did not fit."""
        ...

    def launch(self, pairs: Sequence[_PairT_contra]) -> PendingLogits:
        """Starts one forward pass's worth of pairs (the caller keeps the token budget), one call at a time.

        Raises `DeviceMemoryExhausted` if a single pair does not fit in memory, `DeviceFailed` if the device is lost.
        """
        ...


class Engine(BatchScorer[PairT], Protocol[PairT]):
    """A model on a device. `tokenise` may run in several threads at once."""

    @property
    def window_tokens(self) -> int:
        """Longest pair in tokens."""
        ...

    @property
    def default_batch_tokens(self) -> int:
        """Tokens of a batch above which this device gains little."""
        ...

    @property
    def cache_counts(self) -> CacheCounts:
        """Of the passage cache; zeros where there is none."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Most that its caches may hold on the device."""
        ...

    def caches_off(self) -> AbstractContextManager[None]:
        """While it is open, no cache answers, keeps or counts anything."""
        ...

    @property
    def device_facts(self) -> DeviceFacts:
        """As of now."""
        ...

    @property
    def description(self) -> str:
        """Kind, device and precision, for logs."""
        ...

    @property
    def precision(self) -> str:
        """What the model computes in on this machine: `float32`, `float16`, `bfloat16`, `int8` or `float8`."""
        ...

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[PairT]:
        """Pairs in the order of `passages`. Raises `PairTooLong` under `Truncate.NONE`."""
        ...

    def passage_room(self, query: str) -> int:
        """Tokens of a passage that fit beside this query; 0 where the query fills the window."""
        ...

    def token_spans(self, texts: Sequence[str]) -> list[list[TokenSpan]]:
        """Of each text's own tokens, without special ones."""
        ...

    def score(self, pairs: Sequence[PairT]) -> list[float]:
        """`launch`, then `wait`: logits `[B]` in the order of `pairs`."""
        ...
