"""The contract of every engine: tokenises pairs before they are queued, and returns one float32 logit per pair.

The scheduler relies only on this contract.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from rerank_service.messages import Numerics, Span, StartTimes, TokenMatch, Truncate

__all__ = [
    "Agree",
    "Aligner",
    "BatchScorer",
    "CacheCounts",
    "DeviceFacts",
    "EncodedPair",
    "Engine",
    "PairT",
    "PendingLogits",
    "RunAlone",
    "TokenIds",
    "TokenSpan",
    "Truncate",
    "choose_here",
    "run_here",
]

TokenIds = NDArray[np.int32]  # [L]
TokenSpan = Span
"""Start and end of a token in its text, in characters."""


RunAlone: TypeAlias = Callable[[Callable[[], None]], None]
"""Calls a function while no other thread launches work on the device."""


def run_here(call: Callable[[], None]) -> None:
    """A `RunAlone` for a process in which the calling thread alone uses the device."""
    call()


Agree: TypeAlias = Callable[[Sequence[str], Callable[[], Numerics]], Numerics]
"""Returns the numerics that all replicas of a deployment share, given the names of those that this process can compute
and a function that chooses one of them. Raises `CheckpointError` if they share others."""


def choose_here(possible: Sequence[str], choose: Callable[[], Numerics]) -> Numerics:
    """An `Agree` for a process that shares its logits with no other."""
    return choose()


class CacheCounts(NamedTuple):
    """Look-ups in an engine's passage cache since the engine was loaded."""

    hits: int
    misses: int


class DeviceFacts(NamedTuple):
    """Memory in use on an engine's device, and the device's peak speed."""

    memory_bytes: int
    """On a GPU, the memory held by torch; on a CPU, the memory of the process. 0 if the system does not report it."""
    peak_tokens_per_s: float | None
    """Speed at which the model's linear layers alone would reach the device's dense bfloat16 peak. Null: unknown peak.

    A measured speed divided by this value is the model FLOP utilisation.
    """
    memory_limit_bytes: int | None = None
    """Memory of the GPU, of the MIG slice, or of the replica's fraction of a GPU; null on a CPU."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """A tokenised pair, truncated to the window."""

    token_ids: TokenIds
    """Ids of the tokens that the window limits: the whole templated pair or, for late interaction, the passage."""
    num_tokens: int
    """Number of tokens of query and passage, including special tokens. This number is billed, and counts towards the
    token limit of a batch."""
    is_truncated: bool
    """Whether the pair was longer than the window."""
    is_passage_cut: bool = field(default=False, kw_only=True)
    """Whether part of the passage was cut, not only part of the query."""
    is_unscored: bool = field(default=False, kw_only=True)
    """Whether truncation removed every token of a non-empty passage, so that the logit is meaningless."""


PairT = TypeVar("PairT", bound=EncodedPair)
_PairT_contra = TypeVar("_PairT_contra", bound=EncodedPair, contravariant=True)


class PendingLogits(Protocol):
    """A forward pass in flight."""

    @property
    def is_ready(self) -> bool:
        """Whether `wait` returns at once."""

    def wait(self) -> list[float]:
        """Float32 logits `[B]`, unbounded; higher means more relevant. Raises `DeviceFailed` if the device is lost."""


class BatchScorer(Protocol[_PairT_contra]):
    """The part of an engine that runs batches on a device."""

    @property
    def max_in_flight(self) -> int:
        """Number of batches that may be in flight at once; 1 if `launch` returns only when its batch is done."""

    @property
    def memory_tokens(self) -> int | None:
        """Number of tokens in the largest batch that fits in memory; null: unknown. Decreases after a batch that did
        not fit."""

    def launch(self, pairs: Sequence[_PairT_contra]) -> PendingLogits:
        """Starts one forward pass. Callers limit the tokens of a batch, and call from one thread at a time.

        Raises `DeviceMemoryExhausted` if a single pair does not fit in memory, and `DeviceFailed` if the device is
        lost.
        """


class Aligner(Protocol[PairT]):
    """The part of an engine that reports token matches, if the model compares the tokens of query and passage."""

    def recording(self, pairs: Sequence[PairT]) -> list[PairT]:
        """Copies of `pairs` for which the forward pass also records the matches. Their logits do not change."""
        ...

    def matches(self, query: str, passages: Sequence[str], pairs: Sequence[PairT]) -> list[list[TokenMatch]]:
        """The recorded matches of each pair, as places in its texts. The pairs come from `recording` and are scored.

        Raises `DeviceFailed`.
        """
        ...


class Engine(BatchScorer[PairT], Protocol[PairT]):
    """A model on a device. Several threads may call `tokenise` at once."""

    @property
    def window_tokens(self) -> int:
        """Maximum length of a pair, in tokens."""

    @property
    def default_batch_tokens(self) -> int:
        """Default token limit of a batch; larger batches are hardly faster on this device."""

    @property
    def cache_counts(self) -> CacheCounts:
        """Look-ups in the passage cache; zeros if the engine has no passage cache."""

    @property
    def cache_bytes(self) -> int:
        """Memory limit of the engine's caches on the device."""

    def caches_off(self) -> AbstractContextManager[None]:
        """A context in which the caches are turned off: they return, store and count nothing."""

    @property
    def device_facts(self) -> DeviceFacts:
        """Memory in use on the device now, and the device's peak speed."""

    @property
    def description(self) -> str:
        """Kind, device and precision, for logs."""

    @property
    def precision(self) -> str:
        """Coarsest number type in the model's computation: `float32`, `float16`, `bfloat16`, `int8` or `float8`."""

    @property
    def numerics(self) -> Numerics:
        """How the model computes, and why."""

    @property
    def is_batch_invariant(self) -> bool:
        """Whether the logit of a pair is the same, to the last bit, in every batch."""

    @property
    def unverified(self) -> str | None:
        """Why the model may compute something else than its publisher's model; null: nothing is assumed about it, or
        `verify` has confirmed it."""

    @property
    def start_times(self) -> StartTimes:
        """Time from the start of loading until the engine is ready, by stage."""

    @property
    def aligner(self) -> Aligner[PairT] | None:
        """Reports token matches; null if the model compares no tokens."""
        ...

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[PairT]:
        """Returns the pairs in the order of `passages`. Raises `PairTooLong` under `Truncate.NONE`."""

    def passage_room(self, query: str) -> int:
        """Number of passage tokens that fit in the window with this query; 0 if the query fills the window."""

    def token_spans(self, texts: Sequence[str]) -> list[list[TokenSpan]]:
        """Spans of each text's tokens, without special tokens."""

    def score(self, pairs: Sequence[PairT]) -> list[float]:
        """Returns float32 logits `[B]` in the order of `pairs`. Calls `launch`, then `wait`."""
