"""Messages between HTTP, routing and replicas: request options, shards, scores and rankings.

All messages are plain values that can be pickled.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

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
    "Explanation",
    "Fitting",
    "Numerics",
    "PassageWindows",
    "Ranked",
    "ReplicaLoad",
    "ReplicaReport",
    "SentenceContribution",
    "SentenceContributions",
    "Shard",
    "ShardScores",
    "Span",
    "StartTimes",
    "TokenAlignment",
    "TokenMatch",
    "Truncate",
    "checked_logits",
    "rank_by_logit",
]

DEFAULT_OVERLAP_TOKENS = 32
"""Tokens that two consecutive windows share: about two sentences, so that a sentence cut off in one window is whole in
the other."""

MIN_WINDOW_TOKENS = 16
"""Smallest number of passage tokens that a window may have next to the query."""


Span = tuple[int, int]
"""Start and end of a part of a text, in characters (Unicode code points)."""


class Truncate(StrEnum):
    """What to do with a pair that is longer than the model's window: NONE refuses the request, END cuts the end."""

    NONE = "NONE"
    END = "END"


@dataclass(frozen=True, slots=True)
class Deadline:
    """Time at which the answer to a request is due, on this process's monotonic clock. It is meaningless in another
    process."""

    timeout_s: float
    """The request's original time limit, for error messages."""
    at_s: float
    """Value of `time.monotonic()` at the deadline."""

    @classmethod
    def after(cls, timeout_s: float) -> "Deadline":
        """The deadline `timeout_s` seconds from now."""
        return cls(timeout_s, time.monotonic() + timeout_s)

    def remaining_s(self) -> float:
        """Seconds left, 0 once the deadline has passed."""
        return max(0.0, self.at_s - time.monotonic())


@dataclass(frozen=True, slots=True)
class PassageWindows:
    """Options for scoring a long passage in overlapping windows. The best window's logit is the passage's logit: MaxP
    (arXiv 1905.09217)."""

    max_per_passage: int
    """Maximum number of windows. Text beyond these is truncated, or the request is refused under `Truncate.NONE`."""
    tokens: int | None = None
    """Passage tokens per window. Null: as many as fit next to the query."""
    overlap_tokens: int = DEFAULT_OVERLAP_TOKENS
    """Tokens that two consecutive windows share; limited to half of a window."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """How to fit the long passages of a request into the model's window."""

    truncate: Truncate = Truncate.END
    max_passage_tokens: int | None = None
    """Maximum tokens of a passage. Longer passages are cut before windows are applied. Null: only the window limits
    passages."""
    windows: PassageWindows | None = None
    """Null: each passage has one window, and `truncate` applies to a passage that does not fit."""
    max_pair_tokens: int | None = None
    """Maximum tokens of a pair with the model's prompt. The passage is cut, but not the query. Null, or more than the
    model's window: the window is the limit."""
    keeps_end: bool = False
    """Whether a passage that is cut to the window keeps its end instead of its start."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A slice of the pairs of one request, scored by one replica in one call."""

    request_id: str
    """Identical for all shards of a request. Replicas share their device fairly between requests."""
    model: str
    """Id of the model that must score the shard."""
    query: str
    passages: tuple[str, ...]
    indices: tuple[int, ...]
    """Index of each passage in the request."""
    fitting: Fitting
    num_tokens: int
    """Estimated tokens of the shard."""
    request_tokens: int
    """Estimated tokens of all shards of the request."""
    timeout_s: float | None = None
    """Seconds from sending until the caller stops waiting for the answer. Null: no limit."""
    is_counted: bool = False
    """Whether the shard has already been counted as load, by a replica that was then lost or that refused an earlier
    attempt at the request."""
    caller: str = ""
    """Hash of the caller's key, or the caller's address. Replicas share their device fairly between callers."""
    attempt: int = field(default=0, compare=False)
    """Number of this attempt, unique in the ingress's process; 0: not numbered. `ReplicaTable.route_of` returns the
    replica of a numbered attempt."""
    avoid: tuple[str, ...] = ()
    """Serve's ids of the replicas that failed on the shard and should not receive it again."""
    may_decline: bool = field(default=False, compare=False)
    """Whether the replica may hand the shard back unscored."""
    decline_above: int | None = field(default=None, compare=False)
    """Limit of the replica's outstanding tokens. Above it, the replica hands the shard back, because the ingress relied
    on a stale report. Null: no limit."""
    explain: bool = False
    """Whether the answer should have the token matches of each passage, if the model can report them."""
    numerics: str = ""
    """Name of the `Numerics` that the logits should have; empty: any, but the same for all shards of a request."""


class TokenMatch(NamedTuple):
    """A token of the query, and the token of the passage that is most similar to it."""

    query: Span
    passage: Span | None
    """Null: the model's own token without characters, such as CLS or SEP."""
    similarity: float
    """Cosine of the two tokens' states."""


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """Load of a replica. Senders choose between replicas by their loads."""

    replica: str
    """Serve's id of the replica."""
    waiting_tokens: int
    """Outstanding tokens of all models on the replica."""
    tokens_per_s: float
    """Throughput of the replica's device while the device has work; 0 before the first batch."""
    at_s: float
    """Time of the report on the replica's own monotonic clock. It only orders the reports of one replica."""


@dataclass(frozen=True, slots=True)
class Declined:
    """Answer of a replica that hands a shard back because the replica is busier than the sender assumed."""

    load: ReplicaLoad


class Numerics(NamedTuple):
    """How a model computes. Logits of replicas with the same `name` differ at most in the last bits."""

    name: str
    """Number types and kind of device, for instance `int8 with bfloat16 states on cpu`."""
    reason: str
    """Why this precision was chosen, for people to read."""


class StartTimes(NamedTuple):
    """Time that a replica took to load a model, by stage. The start of the process is not included."""

    fetch_s: float = 0.0
    """Finding, fetching and checking the checkpoint's files."""
    weights_s: float = 0.0
    """Loading the tokenizer and the weights onto the device."""
    compile_s: float = 0.0
    """Compiling the layers; 0 on a CPU."""
    capture_s: float = 0.0
    """Capturing CUDA graphs; 0 on a CPU."""
    warm_up_s: float = 0.0
    """Scoring test pairs and measuring memory."""

    def by_stage(self) -> dict[str, float]:
        """The times in seconds, by the names of the stages: `fetch`, `weights`, `compile`, `capture` and `warm_up`."""
        return {name.removesuffix("_s"): seconds for name, seconds in self._asdict().items()}


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """State of a replica, for the metrics. Counters cover the time since the replica's previous report to any
    ingress."""

    replica: str
    """Unique name of the replica."""
    batches: tuple[tuple[int, float], ...]
    """For each batch, its tokens and their share of the batch's token budget."""
    busy_s: float
    """Time during which the device was running a batch."""
    cache_hits: int
    """Passages found in the replica's cache."""
    cache_misses: int
    waiting_tokens: int
    """Tokens that are queued for the device or being scored on it now."""
    tokens_per_s: float
    """Throughput of the device while the device has work; 0 before the first batch."""
    memory_bytes: int
    mfu: float | None
    """Model FLOP utilisation while the device has work; null if the device's peak is unknown."""
    precision: str = ""
    """Precision of the model's computation, as in `Engine.precision`."""
    window_tokens: int | None = None
    """Maximum length of a pair, in tokens."""
    memory_limit_bytes: int | None = None
    """Memory on a GPU that the replica may use; null on a CPU."""
    unverified: str | None = None
    """Why the model is unverified, as in `Engine.unverified`; null: it is not."""
    start: StartTimes | None = None
    """The replica's own start; null: unknown."""
    numerics: Numerics | None = None
    """How the replica computes; null: unknown."""


@dataclass(frozen=True, slots=True)
class ShardScores:
    """A replica's answer to a shard: one entry per passage, in the shard's order, and the time of each stage."""

    logits: tuple[float, ...]
    num_tokens: tuple[int, ...]
    """Tokens of the passage's pairs, including the template, after truncation."""
    is_truncated: tuple[bool, ...]
    """Whether a part of the passage was not scored."""
    is_unscored: tuple[bool, ...]
    """Whether no token of the passage was inside the window."""
    tokenise_s: float
    queue_s: float
    """Time from the end of tokenising to the start of the first batch with a pair of this shard."""
    forward_s: float
    """Time from the start of the first batch with a pair of this shard to the last logit."""
    started_at: float = 0.0
    """Time at which the replica received the shard, in seconds since the epoch by the replica's clock."""
    report: ReplicaReport | None = None
    load: ReplicaLoad | None = None
    numerics: str = ""
    """Name of the replica's `Numerics`."""
    can_align: bool = False
    """Whether the model can report token matches."""
    matches: tuple[tuple[TokenMatch, ...], ...] | None = None
    """The token matches of each passage, in the order of the query's tokens. Null: not asked for, or not possible."""


class SentenceContribution(NamedTuple):
    """A part of a passage, usually a sentence, and its contribution to the passage's logit."""

    sentence: Span
    contribution: float | None
    """Logit of the whole passage minus the logit without the sentence. Null: the passage has no other sentence."""


@dataclass(frozen=True, slots=True)
class TokenAlignment:
    """Explains a passage's logit by the token matches that the model itself computes."""

    index: int
    """Index of the passage in the request."""
    matches: Sequence[TokenMatch]


@dataclass(frozen=True, slots=True)
class SentenceContributions:
    """Explains a passage's logit by leaving out one sentence at a time."""

    index: int
    """Index of the passage in the request."""
    sentences: Sequence[SentenceContribution]


Explanation = TokenAlignment | SentenceContributions


OFFERED = "offered_tokens"
"""Tokens that the replica has accepted, or refused for lack of capacity, since its start."""
WAITING = "waiting_tokens"
SPEED = "tokens_per_s"
START = "start_s"
"""`OFFERED`, `WAITING`, `SPEED` and `START` are the keys of the statistics that replicas report to Serve's autoscaler
(`Replica.record_autoscaling_stats`)."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """The ranking of one query's passages, with its sizes and times."""

    order: list[int]
    """Passage indices, most relevant first."""
    logits: list[float]
    """One logit per passage, in the request's order."""
    num_tokens: int
    num_truncated: int
    """Number of passages that were truncated or whose query was truncated, including the passages in `num_unscored`."""
    num_shards: int
    tokenise_s: float
    """`tokenise_s`, `queue_s` and `forward_s` are each the longest time of any shard."""
    queue_s: float
    forward_s: float
    total_s: float
    num_unscored: int = 0
    """Number of passages with no token inside the window; their logits are meaningless."""
    numerics: str = ""
    """Name of the `Numerics` of all logits."""
    can_align: bool = False
    """Whether the model can report token matches."""
    matches: Sequence[Sequence[TokenMatch]] | None = None
    """The token matches of each passage, in the request's order. Null: not asked for, or not possible."""
    explanations: Sequence[Explanation] | None = None
    """Explanations of the best passages, most relevant first. Null: not asked for."""
    num_explaining: int = 0
    """Passages scored in addition, for the explanations. `num_tokens` and the times include them."""


def checked_logits(logits: Sequence[float], num_pairs: int) -> Sequence[float]:
    """Returns `logits` unchanged if there is one finite logit per pair. Without this check, NaN would silently cause a
    wrong order.

    Raises `NonFiniteLogit`, and `RuntimeError` if the number of logits differs from `num_pairs`.
    """
    if len(logits) != num_pairs:
        raise RuntimeError(f"the engine returned {len(logits)} logits for {num_pairs} pairs")
    if not all(map(math.isfinite, logits)):
        wrong = [index for index, logit in enumerate(logits) if not math.isfinite(logit)]
        raise NonFiniteLogit(len(wrong), wrong[0])
    return logits


def rank_by_logit(logits: Sequence[float]) -> list[int]:
    """Returns the indices by descending logit. Equal logits are in the order of their indices. Raises
    `NonFiniteLogit`."""
    checked_logits(logits, len(logits))
    return sorted(range(len(logits)), key=logits.__getitem__, reverse=True)  # `reverse` keeps the sort stable
