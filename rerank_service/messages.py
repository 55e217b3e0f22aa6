"""Messages between HTTP, routing and replicas: what a request asks, its shards, their scores, and the ranking.

Plain values that pickle; they know neither Ray nor HTTP.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from rerank_service.errors import NonFiniteLogit

__all__ = [
    "DEFAULT_OVERLAP_TOKENS",
    "MIN_WINDOW_TOKENS",
    "OFFERED",
    "SPEED",
    "START",
    "WAITING",
    "Deadline",
    "Declined",
    "Fitting",
    "PassageWindows",
    "Ranked",
    "ReplicaLoad",
    "ReplicaReport",
    "Shard",
    "ShardScores",
    "Truncate",
    "checked_logits",
    "is_declined",
    "rank_by_logit",
]


DEFAULT_OVERLAP_TOKENS = 32
"""Of two windows: about two sentences, so that what stands on a seam stands whole in one of them."""

MIN_WINDOW_TOKENS = 16
"""Of a passage, beside the query: less is no window."""


class Truncate(StrEnum):
    """What happens to a pair longer than the window."""

    NONE = "NONE"
    END = "END"


@dataclass(frozen=True, slots=True)
class Deadline:
    """When the answer to a request is due, on this process's monotonic clock. It cannot travel to another process."""

    timeout_s: float
    """Time limit the request started with, for error messages."""
    at_s: float
    """`time.monotonic()` at which the limit ends."""

    @classmethod
    def after(cls, timeout_s: float) -> "Deadline":
        """The deadline `timeout_s` seconds from now."""
        return cls(timeout_s, time.monotonic() + timeout_s)

    def remaining_s(self) -> float:
        """Seconds left, 0 once the deadline has passed."""
        return max(0.0, self.at_s - time.monotonic())


@dataclass(frozen=True, slots=True)
class PassageWindows:
    """A long passage as overlapping windows, whose best logit is the passage's: MaxP (arXiv 1905.09217)."""

    max_per_passage: int
    """What stands behind that many windows is cut, or refused under `Truncate.NONE`."""
    tokens: int | None = None
    """Tokens of the passage in a window. Null: as many as fit beside the query."""
    overlap_tokens: int = DEFAULT_OVERLAP_TOKENS
    """Tokens that a window has in common with the one before; at most half of them are."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """What a request wants done with long passages."""

    truncate: Truncate = Truncate.END
    max_passage_tokens: int | None = None
    """A longer passage is cut there before anything else. Null: no limit but the window."""
    windows: PassageWindows | None = None
    """Null: a passage that does not fit is cut, or refused."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A slice of one request's pairs, scored by one replica in one call."""

    request_id: str
    """The same for all shards of a request: replicas share their device fairly between requests."""
    model: str
    """Id of the model that must score it."""
    query: str
    passages: tuple[str, ...]
    indices: tuple[int, ...]
    """Index in the request of each passage."""
    fitting: Fitting
    num_tokens: int
    """By estimate."""
    request_tokens: int
    """Of all shards of the request, by estimate."""
    timeout_s: float | None = None
    """Seconds after which nobody waits for the answer any more, counted from when it was sent."""
    is_counted: bool = False
    """Whether a replica has counted it as load before: one that was lost, or one that refused the request."""
    caller: str = ""
    """Who sent the request: a hash of the key, or an address. Replicas share their device fairly between callers."""
    attempt: int = field(default=0, compare=False)
    """Number, unique in the ingress's process, under which it can be asked which replica this was sent to."""
    avoid: tuple[str, ...] = ()
    """Replicas, by Serve's id, that failed on it and should not get it again."""
    may_decline: bool = field(default=False, compare=False)
    """Whether the replica may hand it back."""
    decline_above: int | None = field(default=None, compare=False)
    """A replica with more tokens outstanding hands it back, since the ingress chose by a stale report; null: never."""


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """How busy a replica is, for whoever chooses between replicas."""

    replica: str
    """Serve's id of it."""
    waiting_tokens: int
    """Outstanding, of all its models."""
    tokens_per_s: float
    """What its device scores while it has work; 0 before the first batch."""
    at_s: float
    """By the replica's own monotonic clock: orders its reports, and nothing else."""


@dataclass(frozen=True, slots=True)
class Declined:
    """A replica's answer instead of scores: it is busier than the sender assumed."""

    load: ReplicaLoad


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """How the replica fares, for the metrics. What is counted, is counted since the last report to anybody."""

    replica: str
    """Its name; any two differ."""
    batches: tuple[tuple[int, float], ...]
    """Tokens of each batch, and the share of its budget that is."""
    busy_s: float
    """Time its device had a batch."""
    cache_hits: int
    """Passages that its cache had."""
    cache_misses: int
    waiting_tokens: int
    """For its device or on it, now."""
    tokens_per_s: float
    """What the device scores while it has work; 0 before the first batch."""
    memory_bytes: int
    mfu: float | None
    """Model FLOP utilisation while the device has work; null where its peak is not known."""
    precision: str = ""
    """What the model computes in, see `Engine.precision`."""


@dataclass(frozen=True, slots=True)
class ShardScores:
    """What a replica answers."""

    logits: tuple[float, ...]
    """One a passage, in the shard's order."""
    num_tokens: tuple[int, ...]
    """Tokens of each passage's pairs, templated and truncated."""
    is_truncated: tuple[bool, ...]
    """Whether a part of each passage was not scored."""
    is_unscored: tuple[bool, ...]
    """Whether the window left no token of each passage."""
    tokenise_s: float
    queue_s: float
    """From the end of tokenising to the start of the first batch with a pair of this shard."""
    forward_s: float
    """From there to the last logit."""
    started_at: float = 0.0
    """Seconds since the epoch, by the replica's clock, when it got the shard."""
    report: ReplicaReport | None = None
    load: ReplicaLoad | None = None


def is_declined(shard: Shard, load: ReplicaLoad) -> bool:
    """Whether a replica with this load hands the shard back."""
    return shard.decline_above is not None and load.waiting_tokens > shard.decline_above


OFFERED = "offered_tokens"
"""Counter since the replica's start: tokens taken, and tokens refused for want of capacity."""
WAITING = "waiting_tokens"
SPEED = "tokens_per_s"
START = "start_s"
"""Keys of what replicas report (`Replica.record_autoscaling_stats`)."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A request's answer and what it took."""

    order: list[int]
    """Passage indices, most relevant first."""
    logits: list[float]
    """One a passage, in the request's order."""
    num_tokens: int
    num_truncated: int
    """Passages of which a part, or a part of the query beside them, was not scored; those in `num_unscored` too."""
    num_shards: int
    tokenise_s: float
    queue_s: float
    """Each of these is the slowest shard's."""
    forward_s: float
    total_s: float
    num_unscored: int = 0
    """Passages of which the window left no token: their logits say nothing about them."""


def checked_logits(logits: Sequence[float], num_pairs: int) -> Sequence[float]:
    """`logits` as they are, one finite number a pair; anything else would be sorted in silence, and wrongly.

    Raises `NonFiniteLogit`, and `RuntimeError` if their number is another.
    """
    if len(logits) != num_pairs:
        raise RuntimeError(f"the engine gave {len(logits)} logits for {num_pairs} pairs")
    if not all(map(math.isfinite, logits)):
        wrong = [index for index, logit in enumerate(logits) if not math.isfinite(logit)]
        raise NonFiniteLogit(len(wrong), wrong[0])
    return logits


def rank_by_logit(logits: Sequence[float]) -> list[int]:
    """Indices by logit, highest first; equal logits by ascending index. Raises `NonFiniteLogit`."""
    checked_logits(logits, len(logits))
    return sorted(range(len(logits)), key=lambda index: -logits[index])  # sorted() is stable
