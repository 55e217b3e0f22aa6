"""Draws training lists: queries, each with a relevant passage and passages that are not relevant.

The lists of a step depend only on the seed and the step's number, so an interrupted training goes on unchanged.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from rerank_service.tools.evaluation.collection import Collection
from rerank_service.tools.evaluation.first_stage import Bm25

__all__ = ["ListSampler", "TrainingLists"]

_MINED_QUERIES = 4096
"""Number of queries whose mined passages are remembered."""


@dataclass(frozen=True)
class TrainingLists:
    """Q queries, and the P distinct passages of all their lists."""

    queries: Sequence[str]
    passages: Sequence[str]
    own: Sequence[Sequence[int]]
    """For each query, the indices of the passages in its own list."""
    grades: torch.Tensor  # [Q, P]: relevance of each passage to each query; 0: not relevant, or not judged


class ListSampler:
    """Draws lists from the training queries and their corpus.

    A list has one relevant passage, drawn at random. The others are drawn from the passages judged as not relevant and
    from the query's `num_mined` best unjudged passages by BM25.
    """

    def __init__(
        self, train: Collection, bm25: Bm25, unseen: frozenset[str], *, num_passages: int, num_mined: int, seed: int
    ) -> None:
        """Passages in `unseen` are never drawn."""
        self._train = train
        self._bm25 = bm25
        self._unseen = unseen
        self._num_passages = num_passages
        self._num_mined = num_mined
        self._seed = seed
        self._ids = list(train.queries)
        self._rivals = lru_cache(_MINED_QUERIES)(self._find_rivals)
        self._epoch = lru_cache(2)(self._shuffled)

    def lists(self, step: int, num_queries: int) -> TrainingLists:
        """The lists of a step, counted from 0. Every query is drawn once before any query is drawn again."""
        generator = random.Random(f"{self._seed} lists {step}")  # noqa: S311 - not for secrets
        first = step * num_queries
        chosen = [self._epoch(at // len(self._ids))[at % len(self._ids)] for at in range(first, first + num_queries)]
        places: dict[str, int] = {}
        own = []
        for query_id in chosen:
            relevance, rivals = self._train.relevance[query_id], self._rivals(query_id)
            positive = generator.choice([passage for passage, grade in relevance.items() if grade > 0])
            drawn = generator.sample(rivals, min(self._num_passages - 1, len(rivals)))
            own.append([places.setdefault(passage, len(places)) for passage in (positive, *drawn)])
        grades = [[max(0, self._train.relevance[query].get(one, 0)) for one in places] for query in chosen]
        queries = [self._train.queries[query_id] for query_id in chosen]
        passages = [self._train.passages[passage] for passage in places]
        return TrainingLists(queries, passages, own, torch.tensor(grades, dtype=torch.float32))

    def _find_rivals(self, query_id: str) -> list[str]:
        relevance = self._train.relevance[query_id]
        judged = [passage for passage, grade in relevance.items() if grade <= 0 and passage not in self._unseen]
        found = self._bm25.best(self._train.queries[query_id], self._num_mined + len(relevance) + len(self._unseen))
        mined = [passage for passage in found if passage not in relevance and passage not in self._unseen]
        return judged + mined[: self._num_mined]

    def _shuffled(self, epoch: int) -> list[str]:
        return random.Random(f"{self._seed} epoch {epoch}").sample(self._ids, len(self._ids))  # noqa: S311
