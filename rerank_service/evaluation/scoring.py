"""All pairs of a collection through an engine. Knows nothing of judgements."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from rerank_service.engine.pack import token_budget_batches
from rerank_service.engine.protocol import EncodedPair, Engine, Truncate
from rerank_service.evaluation.collection import Collection
from rerank_service.evaluation.first_stage import Candidates, Scores

__all__ = ["by_query", "engine_logits", "tokenise"]


def tokenise(engine: Engine[Any], collection: Collection, candidates: Candidates) -> list[EncodedPair]:
    """All pairs, query by query, in the order of the candidates."""
    pairs: list[EncodedPair] = []
    for query_id, passage_ids in candidates.items():
        passages = [collection.passages[passage_id] for passage_id in passage_ids]
        pairs += engine.tokenise(collection.queries[query_id], passages, Truncate.END)
    return pairs


def engine_logits(
    engine: Engine[Any],
    pairs: Sequence[EncodedPair],
    batch_tokens: int,
    on_scored: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Logits in the order of `pairs`; `on_scored` hears how many are there."""
    logits = [math.nan] * len(pairs)
    num_scored = 0
    for batch in _passage_batches(pairs, batch_tokens):
        for index, logit in zip(batch, engine.score([pairs[index] for index in batch]), strict=True):
            logits[index] = logit
        num_scored += len(batch)
        on_scored(num_scored)
    return logits


def _passage_batches(pairs: Sequence[EncodedPair], batch_tokens: int) -> Iterator[list[int]]:
    """Batches of `batch_tokens` distinct tokens, where the pairs of one passage stay together.

    A late-interaction engine encodes a passage once a batch, so over covid-faq's 21,200 pairs each passage is
    encoded once; pairs of other engines are distinct anyway.
    """
    same: dict[bytes, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        same[pair.token_ids.tobytes()].append(index)
    groups = list(same.values())
    lengths = [len(pairs[group[0]].token_ids) for group in groups]
    for batch in token_budget_batches(lengths, batch_tokens):
        yield [index for group in batch for index in groups[group]]


def by_query(logits: Sequence[float], candidates: Candidates) -> Scores:
    """A flat list of logits, cut up query by query."""
    remaining = iter(logits)
    return {query_id: list(islice(remaining, len(chosen))) for query_id, chosen in candidates.items()}
