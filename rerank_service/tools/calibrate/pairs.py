"""The judged pairs of a calibration: one logit and one label per pair, with the pair's query."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rerank_service.errors import BatchError
from rerank_service.tools.evaluation.collection import Collection
from rerank_service.tools.evaluation.first_stage import Candidates, Scores

__all__ = ["MIN_QUERIES", "JudgedPairs", "judged_only"]

MIN_QUERIES = 20
"""Fewer queries would leave too few of them in each part of the cross-validation."""


@dataclass(frozen=True)
class JudgedPairs:
    """Pairs in the order of the queries. All arrays are 1D and of the same length."""

    logits: NDArray[np.float64]
    is_relevant: NDArray[np.bool_]
    query: NDArray[np.intp]
    """Number of the pair's query, from 0 without gaps."""

    @classmethod
    def of(cls, collection: Collection, candidates: Candidates, logits: Scores, min_grade: int) -> Self:
        """The candidates with their logits; a passage is relevant if its grade is at least `min_grade`."""
        rows = [
            (logit, collection.relevance[query_id].get(passage_id, 0) >= min_grade, number)
            for number, (query_id, chosen) in enumerate(one for one in candidates.items() if one[1])
            for passage_id, logit in zip(chosen, logits[query_id], strict=True)
        ]
        columns = zip(*rows, strict=True) if rows else ((), (), ())
        first, second, third = columns
        return cls(np.array(first, np.float64), np.array(second, np.bool_), np.array(third, np.intp))

    @classmethod
    def unscored(cls, collection: Collection, candidates: Candidates, min_grade: int) -> Self:
        """The candidates with zeros in place of logits."""
        zeros = {query_id: [0.0] * len(chosen) for query_id, chosen in candidates.items()}
        return cls.of(collection, candidates, zeros, min_grade)

    def at(self, indices: NDArray[np.intp]) -> Self:
        """The pairs at these indices."""
        return type(self)(self.logits[indices], self.is_relevant[indices], self.query[indices])

    def __len__(self) -> int:
        return len(self.logits)

    @cached_property
    def num_queries(self) -> int:
        return len(np.unique(self.query))

    @property
    def num_relevant(self) -> int:
        return int(self.is_relevant.sum())

    def check(self) -> None:
        """Raises `BatchError` if the pairs are too few, or all relevant or all irrelevant."""
        if self.num_queries < MIN_QUERIES:
            raise BatchError(
                f"{self.num_queries} queries have candidates; a calibration needs at least {MIN_QUERIES}, and a few "
                "hundred for a narrow interval"
            )
        for label, count in (("relevant", self.num_relevant), ("irrelevant", len(self) - self.num_relevant)):
            if count < MIN_QUERIES:
                raise BatchError(
                    f"{count} of {len(self):,} candidates are {label}; a calibration needs at least {MIN_QUERIES}: "
                    "check the qrels, --min-grade and the candidates"
                )


def judged_only(collection: Collection, candidates: Candidates) -> Candidates:
    """The candidates that have a judgement; a passage without one may be relevant."""
    return {
        query_id: [passage_id for passage_id in chosen if passage_id in collection.relevance[query_id]]
        for query_id, chosen in candidates.items()
    }
