"""Scores all candidates of a collection with an engine."""

from collections.abc import Iterator, Sequence
from itertools import islice

from rerank_service.engine.protocol import Engine, PairT
from rerank_service.engine.score_all import OnScored, QueryPassages, score_passages
from rerank_service.engine.text.windows import EncodedPassages
from rerank_service.errors import BatchError, NonFiniteLogit
from rerank_service.messages import Fitting, PassageWindows
from rerank_service.tools.evaluation.collection import Collection
from rerank_service.tools.evaluation.first_stage import Candidates, Scores

__all__ = ["by_query", "questions", "score_candidates"]


def score_candidates(
    engine: Engine[PairT],
    collection: Collection,
    candidates: Candidates,
    windows: PassageWindows | None = None,
    batch_tokens: int | None = None,
    on_scored: OnScored = lambda *_: None,
) -> tuple[EncodedPassages[PairT], Scores]:
    """Returns the encoded passages, query by query in the order of the candidates, and their scores.

    If a logit is not finite, raises `BatchError` with the logit's query and passage.
    """
    asked = questions(collection, candidates)
    try:
        passages, logits = score_passages(engine, asked, Fitting(windows=windows), batch_tokens, on_scored)
    except NonFiniteLogit as error:
        pairs = ((query_id, passage_id) for query_id, chosen in candidates.items() for passage_id in chosen)
        query_id, passage_id = next(islice(pairs, error.first, None))
        raise BatchError(
            f"query {query_id!r}, passage {passage_id!r} of {collection.name}: the model's logit is not a finite "
            f"number ({engine.description}); try --dtype float32"
        ) from None
    return passages, by_query(logits, candidates)


def questions(collection: Collection, candidates: Candidates) -> Iterator[QueryPassages]:
    """Yields each query with the texts of its candidates."""
    for query_id, chosen in candidates.items():
        yield collection.queries[query_id], [collection.passages[passage_id] for passage_id in chosen]


def by_query(logits: Sequence[float], candidates: Candidates) -> Scores:
    """Splits a flat list of logits by query."""
    remaining = iter(logits)
    return {query_id: list(islice(remaining, len(chosen))) for query_id, chosen in candidates.items()}
