"""All pairs of a collection through an engine. Knows nothing of judgements."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from rerank_service.engine.pack import token_budget_batches
from rerank_service.engine.protocol import EncodedPair, Engine, PairT
from rerank_service.engine.windows import EncodedPassages, encode_passages
from rerank_service.evaluation.collection import Collection
from rerank_service.evaluation.first_stage import Candidates, Scores
from rerank_service.fitting import Fitting, PassageWindows

__all__ = ["by_query", "engine_logits", "tokenise"]


def tokenise(
    engine: Engine[PairT], collection: Collection, candidates: Candidates, windows: PassageWindows | None = None
) -> EncodedPassages[PairT]:
    """All pairs, query by query, in the order of the candidates."""
    fitting = Fitting(windows=windows)
    return EncodedPassages.joined(
        [
            encode_passages(engine, collection.queries[query_id], [collection.passages[one] for one in chosen], fitting)
            for query_id, chosen in candidates.items()
        ]
    )


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
