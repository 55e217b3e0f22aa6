"""Candidates of each query: BM25's best passages, the passages of a TREC run, or the judged passages."""

import math
from itertools import islice
from pathlib import Path

import bm25s
import numpy as np
import Stemmer

from rerank_service.errors import BatchError
from rerank_service.tools.batch.beir import candidates
from rerank_service.tools.evaluation.collection import Collection

__all__ = ["Bm25", "Candidates", "Scores", "choose_candidates", "read_run"]

Candidates = dict[str, list[str]]
"""Passage ids to rank, by query id."""
Scores = dict[str, list[float]]
"""Scores by query id, in the order of the candidates."""


class Bm25:
    """Lucene's BM25 with English stemming and stop words, over a whole corpus."""

    def __init__(self, passages: dict[str, str]) -> None:
        self._ids = list(passages)
        self._stemmer = Stemmer.Stemmer("english")
        self._index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        self._index.index(self._words(list(passages.values())), show_progress=False)

    def scores(self, query: str) -> dict[str, float]:
        """Scores of all passages, best first; ties keep the order of the corpus."""
        (words,) = self._words([query])
        scores = self._index.get_scores(words).tolist() if words else [0.0] * len(self._ids)
        return dict(sorted(zip(self._ids, scores, strict=True), key=lambda scored: -scored[1]))

    def best(self, query: str, limit: int) -> list[str]:
        """The passages with the highest scores above 0, at most `limit`, best first; ties keep the order of the
        corpus."""
        (words,) = self._words([query])
        scores = self._index.get_scores(words) if words else np.zeros(len(self._ids), np.float32)
        limit = min(limit, len(scores))
        lowest = np.partition(scores, len(scores) - limit)[len(scores) - limit] if limit else 0.0
        chosen = np.flatnonzero((scores >= lowest) & (scores > 0))
        ranked = chosen[np.argsort(-scores[chosen], kind="stable")][:limit]
        return [self._ids[index] for index in ranked]

    def _words(self, texts: list[str]) -> list[list[str]]:
        words: list[list[str]] = bm25s.tokenize(
            texts, stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return words


def choose_candidates(collection: Collection, bm25: Bm25, top_k: int) -> tuple[Candidates, Scores]:
    """Chooses candidates and returns them with their BM25 scores.

    The candidates are the judged passages if every query has several, else BM25's best passages.
    """
    chosen: Candidates = {}
    scores: Scores = {}
    for query_id, query in collection.queries.items():
        ranked = bm25.scores(query)
        judged = [passage_id for passage_id in collection.relevance[query_id] if passage_id in ranked]
        chosen[query_id] = judged if collection.brings_candidates else list(islice(ranked, top_k))
        scores[query_id] = [ranked[passage_id] for passage_id in chosen[query_id]]
    return chosen, scores


def read_run(path: Path, collection: Collection, top_k: int) -> tuple[Candidates, Scores]:
    """The best passages of a TREC run for each judged query, with their scores. Raises `BatchError`."""
    rows: dict[str, dict[str, float]] = {query_id: {} for query_id in collection.queries}
    for line in candidates(path):
        place = f"{path}, line {line.position.number}"
        if line.query_id not in rows:
            continue
        if line.passage_id not in collection.passages:
            raise BatchError(f"{place}: passage {line.passage_id!r} is not in the corpus")
        try:
            score = float(line.value)
        except ValueError:
            raise BatchError(f"{place}: score {line.value!r} is not a number") from None
        if not math.isfinite(score):
            raise BatchError(f"{place}: score {line.value!r} is not finite")
        rows[line.query_id][line.passage_id] = score
    best = {query_id: sorted(row.items(), key=lambda scored: -scored[1])[:top_k] for query_id, row in rows.items()}
    return (
        {query_id: [passage_id for passage_id, _ in row] for query_id, row in best.items()},
        {query_id: [score for _, score in row] for query_id, row in best.items()},
    )
