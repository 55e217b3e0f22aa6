"""A request cut into shards: what travels between the ingress and a replica, and how large each is.

Pure; sizes are estimates from text, since the tokenizer lives in the replica.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Shard", "ShardScores", "cut_into_shards", "estimate_tokens"]

_BYTES_PER_TOKEN = 4
_SPECIAL_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Shard:
    """A slice of one request's pairs, scored by one replica in one call."""

    request_id: str
    """The same for all shards of a request: replicas share their device fairly between requests."""
    model: str
    """Id of the model that must score it."""
    query: str
    passages: tuple[str, ...]
    first_index: int
    """Index in the request of the first passage."""
    truncate: str


@dataclass(frozen=True, slots=True)
class ShardScores:
    """What a replica answers."""

    logits: tuple[float, ...]
    """One a passage, in the shard's order."""
    num_tokens: int
    """Tokens of all pairs, templated and truncated."""
    num_truncated: int
    """Pairs that the window cut."""
    tokenise_s: float
    queue_s: float
    """From the end of tokenising to the start of the first batch with a pair of this shard."""
    forward_s: float
    """From there to the last logit."""


def estimate_tokens(query: str, passage: str) -> int:
    """About how many tokens a pair has: bytes count, as CJK has about one token a character (three bytes)."""
    num_bytes = len(query.encode("utf-8", "replace")) + len(passage.encode("utf-8", "replace"))
    return num_bytes // _BYTES_PER_TOKEN + _SPECIAL_TOKENS


def cut_into_shards(
    request_id: str, model: str, query: str, passages: Sequence[str], truncate: str, shard_tokens: int
) -> Iterator[Shard]:
    """Shards of about equal size, none above `shard_tokens` by estimate unless one pair alone is."""
    sizes = [estimate_tokens(query, passage) for passage in passages]
    num_shards = -(-sum(sizes) // shard_tokens)
    even_tokens = -(-sum(sizes) // num_shards)
    start, filled = 0, 0
    for index, size in enumerate(sizes):
        if index > start and filled + size > min(even_tokens + size // 2, shard_tokens):
            yield Shard(request_id, model, query, tuple(passages[start:index]), start, truncate)
            start, filled = index, 0
        filled += size
    yield Shard(request_id, model, query, tuple(passages[start:]), start, truncate)
