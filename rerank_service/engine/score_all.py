"""Scores any number of passages in batches, without a scheduler; used by in-process commands and benchmarks."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from rerank_service.engine.protocol import EncodedPair, Engine, PairT
from rerank_service.engine.text.windows import EncodedPassages, encode_passages
from rerank_service.errors import NonFiniteLogit, PairTooLong
from rerank_service.messages import Fitting, checked_logits

__all__ = ["OnScored", "QueryPassages", "encode_all", "score_all", "score_passages", "token_budget_batches"]

QueryPassages = tuple[str, Sequence[str]]
"""A query and its passages."""
OnScored = Callable[[int, int], object]
"""A function called after each batch with the number of pairs scored so far and the total number of pairs."""


def score_passages(
    engine: Engine[PairT],
    queries: Iterable[QueryPassages],
    fitting: Fitting,
    batch_tokens: int | None = None,
    on_scored: OnScored = lambda *_: None,
) -> tuple[EncodedPassages[PairT], tuple[float, ...]]:
    """Scores all passages. Returns their pairs, query by query, and one logit per passage.

    Raises `NonFiniteLogit` and, under `Truncate.NONE`, `PairTooLong`. The index in these errors counts the passages of
    all queries.
    """
    encoded = encode_all(engine, queries, fitting)
    try:
        logits = score_all(engine, encoded.pairs, batch_tokens, on_scored)
    except NonFiniteLogit as error:
        passage = bisect_right(list(accumulate(encoded.num_windows)), error.first)
        raise NonFiniteLogit(error.num_pairs, passage) from None
    return encoded, encoded.best(logits)


def encode_all(engine: Engine[PairT], queries: Iterable[QueryPassages], fitting: Fitting) -> EncodedPassages[PairT]:
    """Returns the pairs of several queries, query by query. The index in `PairTooLong` counts the passages of all
    queries."""
    parts: list[EncodedPassages[Any]] = []
    num_passages = 0
    for query, passages in queries:
        try:
            parts.append(encode_passages(engine, query, passages, fitting))
        except PairTooLong as error:
            raise error.at(num_passages + error.index) from None
        num_passages += len(passages)
    return EncodedPassages.joined(parts)


def score_all(
    engine: Engine[PairT],
    pairs: Sequence[PairT],
    batch_tokens: int | None = None,
    on_scored: OnScored = lambda *_: None,
) -> list[float]:
    """Finite float32 logits `[B]` in the order of `pairs`. Raises `NonFiniteLogit`.

    A batch has at most `batch_tokens` tokens (default: the engine's `default_batch_tokens`), and at most as many as fit
    in memory.
    """
    budget = batch_tokens or engine.default_batch_tokens
    logits: dict[int, float] = {}
    for batch in token_budget_batches(pairs, min(budget, engine.memory_tokens or budget)):
        try:
            scored = checked_logits(engine.score([pairs[index] for index in batch]), len(batch))
        except NonFiniteLogit as error:
            raise NonFiniteLogit(error.num_pairs, batch[error.first]) from None
        logits.update(zip(batch, scored, strict=True))
        on_scored(len(logits), len(pairs))
    return [logits[index] for index in range(len(pairs))]


def token_budget_batches(pairs: Sequence[EncodedPair], max_tokens: int) -> Iterator[list[int]]:
    """Indices of `pairs` in batches of at most `max_tokens` tokens, longest first; a longer pair has its own batch.

    Pairs with the same passage are adjacent, and the passage's tokens count once per batch, because a late-interaction
    engine encodes each distinct passage of a batch once.
    """
    same_text: dict[bytes, list[int]] = {}
    for index, pair in enumerate(pairs):
        same_text.setdefault(pair.token_ids.tobytes(), []).append(index)
    batch: list[int] = []
    num_tokens = 0
    for group in sorted(same_text.values(), key=lambda group: -len(pairs[group[0]].token_ids)):
        for place, index in enumerate(group):
            pair = pairs[index]
            query_tokens = pair.num_tokens - len(pair.token_ids)  # 0 in engines that read query and passage together
            added = query_tokens if place and query_tokens else pair.num_tokens
            if batch and num_tokens + added > max_tokens:
                yield batch
                batch, num_tokens, added = [], 0, pair.num_tokens
            batch.append(index)
            num_tokens += added
    if batch:
        yield batch
