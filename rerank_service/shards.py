"""A request cut into shards: what travels between the ingress and a replica, and how large each is.

Pure; sizes are estimates from text, since the tokenizer lives in the replica.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rerank_service.fitting import Fitting, PassageWindows

__all__ = [
    "Declined",
    "ReplicaLoad",
    "ReplicaReport",
    "Shard",
    "ShardScores",
    "cut_into_shards",
    "estimate_tokens",
    "even_slices",
    "is_declined",
]

_BYTES_PER_TOKEN = 4
_SPECIAL_TOKENS = 8
_WINDOW_TOKENS = 256
"""Of a model whose window only the replica knows; small, so that windows are rather expected than overlooked."""


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


def estimate_tokens(query: str, passage: str, windows: PassageWindows | None = None) -> int:
    """About how many tokens a passage's pairs have."""
    query_tokens, passage_tokens = _num_tokens(query) + _SPECIAL_TOKENS, _num_tokens(passage)
    if windows is None:
        return query_tokens + passage_tokens
    window_tokens = windows.tokens or _WINDOW_TOKENS
    overlap_tokens = min(windows.overlap_tokens, window_tokens // 2)
    needed = -(-max(0, passage_tokens - overlap_tokens) // (window_tokens - overlap_tokens)) or 1
    num_windows = min(needed, windows.max_per_passage)
    seen_tokens = min(passage_tokens + (num_windows - 1) * overlap_tokens, num_windows * window_tokens)
    return num_windows * query_tokens + seen_tokens


def _num_tokens(text: str) -> int:
    """Bytes count, as CJK has about one token a character (three bytes)."""
    return len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN


def cut_into_shards(
    request_id: str,
    model: str,
    query: str,
    passages: Sequence[str],
    fitting: Fitting,
    shard_tokens: int,
    timeout_s: float | None = None,
    caller: str = "",
) -> Iterator[Shard]:
    """Shards of about equal size, none above `shard_tokens` by estimate unless one pair alone is.

    A passage that stands more than once in the request is scored once: less work, and its copies have the same
    logit to the last bit, even where a GPU's would depend on the batch.
    """
    distinct: dict[str, int] = {}
    for index, passage in enumerate(passages):
        distinct.setdefault(passage, index)
    first_indices = list(distinct.values())
    sizes = [estimate_tokens(query, passages[index], fitting.windows) for index in first_indices]
    for start, end in even_slices(sizes, shard_tokens):
        indices = tuple(first_indices[start:end])
        texts = tuple(passages[index] for index in indices)
        num_tokens = sum(sizes[start:end])
        yield Shard(request_id, model, query, texts, indices, fitting, num_tokens, sum(sizes), timeout_s, caller=caller)


def even_slices(sizes: Sequence[int], max_size: int) -> Iterator[tuple[int, int]]:
    """Consecutive slices of about equal total size, at most `max_size` unless one entry alone is larger."""
    num_slices = -(-sum(sizes) // max_size)
    even_size = -(-sum(sizes) // num_slices)
    start, filled = 0, 0
    for index, size in enumerate(sizes):
        if index > start and filled + size > min(even_size + size // 2, max_size):
            yield start, index
            start, filled = index, 0
        filled += size
    yield start, len(sizes)
