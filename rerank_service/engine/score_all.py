"""From texts to logits that can be ranked, for callers without a scheduler: the command line and the benchmarks."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

from rerank_service.engine.device.pack import token_budget_batches
from rerank_service.engine.protocol import Engine, PairT
from rerank_service.engine.text.windows import EncodedPassages, encode_passages
from rerank_service.errors import NonFiniteLogit, PairTooLong
from rerank_service.messages import Fitting, checked_logits

__all__ = ["Progress", "Question", "encode_all", "score_all", "score_passages"]

Question = tuple[str, Sequence[str]]
"""A query and its passages."""
Progress = Callable[[int, int], object]
"""Called with the number of pairs scored so far, and of all pairs."""


def score_passages(
    engine: Engine[PairT],
    questions: Iterable[Question],
    fitting: Fitting,
    batch_tokens: int | None = None,
    on_scored: Progress = lambda *_: None,
) -> tuple[EncodedPassages[PairT], tuple[float, ...]]:
    """The pairs of all passages, question after question, and each passage's logit.

    Raises `NonFiniteLogit` and, under `Truncate.NONE`, `PairTooLong`; their index counts the passages of all questions.
    """
    encoded = encode_all(engine, questions, fitting)
    try:
        logits = score_all(engine, encoded.pairs, batch_tokens, on_scored)
    except NonFiniteLogit as error:
        passage = bisect_right(list(accumulate(encoded.num_windows)), error.first)
        raise NonFiniteLogit(error.num_pairs, passage) from None
    return encoded, encoded.best(logits)


def encode_all(engine: Engine[PairT], questions: Iterable[Question], fitting: Fitting) -> EncodedPassages[PairT]:
    """Pairs of several questions. The index of a `PairTooLong` counts the passages of all of them."""
    parts: list[EncodedPassages[Any]] = []
    num_passages = 0
    for query, passages in questions:
        try:
            parts.append(encode_passages(engine, query, passages, fitting))
        except PairTooLong as error:
            raise PairTooLong(num_passages + error.index, error.num_tokens, error.max_tokens) from None
        num_passages += len(passages)
    return EncodedPassages.joined(parts)


def score_all(
    engine: Engine[PairT],
    pairs: Sequence[PairT],
    batch_tokens: int | None = None,
    on_scored: Progress = lambda *_: None,
) -> list[float]:
    """Finite logits `[B]` in the order of `pairs`. Raises `NonFiniteLogit`.

    Scored in batches of at most `batch_tokens`, by default the device's, and never more than its memory holds.
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
