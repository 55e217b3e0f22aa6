"""A request cut into shards of about equal size.

Sizes are estimates from text, since the tokenizer lives in the replica.
"""

from collections.abc import Iterator, Sequence

from rerank_service.messages import Fitting, PassageWindows, Shard

__all__ = ["cut_into_shards", "estimate_tokens", "even_slices"]

_BYTES_PER_TOKEN = 4
_SPECIAL_TOKENS = 8
_WINDOW_TOKENS = 256
"""Assumed for a model whose window only the replica knows; small, so that windows are expected."""


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
