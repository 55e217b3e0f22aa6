"""Splits judged queries into training, dev and held-out queries that share neither a query nor a relevant passage."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rerank_service.errors import BatchError
from rerank_service.tools.evaluation.collection import Collection
from rerank_service.tools.tune.judged import only

__all__ = ["FEWEST_QUERIES", "Split", "split_queries"]

FEWEST_QUERIES = 30
"""Fewest judged queries from which some are split off."""
_HELD_OUT_SHARE, _DEV_SHARE = 0.2, 0.15
_LARGEST_HELD_OUT, _LARGEST_DEV = 300, 150


@dataclass(frozen=True)
class Split:
    """Queries for training, for choices, and for the final verdict."""

    train: Collection
    dev: Collection
    held_out: tuple[Collection, ...]
    num_left_out: int
    """Given queries that were removed because they are linked to a held-out query or to a given dev query."""
    unseen: frozenset[str]
    """Ids of passages of `train` that are relevant to a dev or held-out query; training must not use them."""


def split_queries(train: Collection, dev: Collection | None, held_out: Sequence[Collection], seed: int) -> Split:
    """Splits the parts that are not given from `train`. The same input gives the same split.

    Queries are linked if their texts differ only in case and white space, or if they share a relevant passage, also
    through other queries. Linked queries stay in one part: `train` loses those that are linked to `dev` or `held_out`,
    and `dev` those that are linked to `held_out`. Raises `BatchError` if too few queries are left.
    """
    groups = _Groups([train, *([dev] if dev else []), *held_out])
    taken = {group for part in held_out for group in groups.of_each(part).values()}
    num_left_out = 0
    if dev is not None:
        kept = [query_id for query_id, group in groups.of_each(dev).items() if group not in taken]
        num_left_out += len(dev.queries) - len(kept)
        dev = only(dev, kept)
        taken |= set(groups.of_each(dev).values())
    free: dict[str, list[str]] = {}
    for query_id, group in groups.of_each(train).items():
        if group not in taken:
            free.setdefault(group, []).append(query_id)
    num_free = sum(map(len, free.values()))
    num_left_out += len(train.queries) - num_free
    if num_free < FEWEST_QUERIES:
        raise BatchError(
            f"{train.name} has {num_free} judged queries that no dev or held-out query is linked to; tuning needs at "
            f"least {FEWEST_QUERIES}"
        )
    shuffled = sorted(free, key=lambda group: hashlib.blake2b(f"{seed} {group}".encode()).digest())
    if not held_out:
        size = min(round(_HELD_OUT_SHARE * num_free), _LARGEST_HELD_OUT)
        held_out = [only(train, _take(free, shuffled, size))]
    if dev is None:
        dev = only(train, _take(free, shuffled, min(round(_DEV_SHARE * num_free), _LARGEST_DEV)))
    in_training = {query_id for chosen in free.values() for query_id in chosen}
    rest = only(train, (query_id for query_id in train.queries if query_id in in_training))
    return Split(rest, dev, tuple(held_out), num_left_out, _unseen(train, [dev, *held_out]))


def _take(free: dict[str, list[str]], shuffled: Iterable[str], size: int) -> list[str]:
    """Removes whole groups, in this order, until `size` queries are taken; skips groups that are too large."""
    chosen: list[str] = []
    for group in shuffled:
        if len(free.get(group, ())) and len(chosen) + len(free[group]) <= size:
            chosen += free.pop(group)
    return chosen


def _unseen(train: Collection, parts: Iterable[Collection]) -> frozenset[str]:
    answers = {
        _plain(part.passages[one]) for part in parts for query_id in part.queries for one in _relevant(part, query_id)
    }
    return frozenset(passage_id for passage_id, text in train.passages.items() if _plain(text) in answers)


def _relevant(collection: Collection, query_id: str) -> Iterator[str]:
    return (passage_id for passage_id, grade in collection.relevance[query_id].items() if grade > 0)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


class _Groups:
    """Linked queries of several collections. A group is named by one of its texts."""

    def __init__(self, collections: Iterable[Collection]) -> None:
        self._parents: dict[str, str] = {}
        for collection in collections:
            for query_id in collection.queries:
                first, *others = self._texts(collection, query_id)
                for text in others:
                    self._parents[self._root(text)] = self._root(first)

    def of_each(self, collection: Collection) -> dict[str, str]:
        """The group of each query, by the query's id."""
        return {query_id: self._root(next(self._texts(collection, query_id))) for query_id in collection.queries}

    def _texts(self, collection: Collection, query_id: str) -> Iterator[str]:
        """The query, and its relevant passages. A query never equals a passage, because of the first letter."""
        yield "q" + _plain(collection.queries[query_id])
        for passage_id in _relevant(collection, query_id):
            yield "p" + _plain(collection.passages[passage_id])

    def _root(self, text: str) -> str:
        path = [text]
        while (parent := self._parents.setdefault(path[-1], path[-1])) != path[-1]:
            path.append(parent)
        for passed in path:  # later look-ups are short
            self._parents[passed] = path[-1]
        return path[-1]
