"""Training groups: a query, the passage that answers it and hard negatives. Knows nothing of models."""

import gzip
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["Group", "batches", "lengthen", "read_groups", "split_groups"]

_DEV_BUCKETS = 20
"""One passage in twenty may be drawn for the dev split, its queries with it."""


@dataclass(frozen=True)
class Group:
    """What one query is trained on."""

    source: str
    query: str
    passages: tuple[str, ...]
    """The positive first, then its hard negatives."""


def read_groups(path: Path, sources: Sequence[str]) -> list[Group]:
    """Lines `{"src", "q", "pos", "negs"}` of a gzipped file, in its order, of the sources asked for."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [
            Group(row["src"], row["q"], (row["pos"], *row["negs"]))
            for row in rows
            if row["src"] in sources and row["pos"] not in row["negs"]
        ]


def split_groups(groups: Sequence[Group], dev_per_source: int) -> tuple[list[Group], list[Group]]:
    """Training and dev groups. No passage answers a query of both: it is the positive's hash that decides."""
    dev: dict[str, list[Group]] = defaultdict(list)
    train = []
    for group in groups:
        if _bucket(group.passages[0]) != 0:
            train.append(group)
        elif len(dev[group.source]) < dev_per_source:
            dev[group.source].append(group)
    return train, [group for chosen in dev.values() for group in chosen]


def _bucket(passage: str) -> int:
    return int.from_bytes(hashlib.blake2b(passage.encode(), digest_size=4).digest()) % _DEV_BUCKETS


def batches(
    groups: Sequence[Group], shares: Mapping[str, float], num_groups: int, num_passages: int, seed: int
) -> Iterator[list[Group]]:
    """Endless batches, each source drawn by its share and gone through in a shuffled order.

    Of a group's negatives `num_passages - 1` are drawn anew each time.
    """
    generator = random.Random(seed)  # noqa: S311 - not for secrets
    of_source = {source: _shuffled([g for g in groups if g.source == source], generator) for source in shares}
    while True:
        sources = generator.choices(list(shares), list(shares.values()), k=num_groups)
        yield [_fewer_negatives(next(of_source[source]), num_passages, generator) for source in sources]


def _shuffled(groups: Sequence[Group], generator: random.Random) -> Iterator[Group]:
    while True:
        yield from generator.sample(groups, len(groups))


def _fewer_negatives(group: Group, num_passages: int, generator: random.Random) -> Group:
    positive, *negatives = group.passages
    chosen = generator.sample(negatives, min(num_passages - 1, len(negatives)))
    return replace(group, passages=(positive, *chosen))


def lengthen(batch: Sequence[Group], share: float, generator: random.Random) -> list[Group]:
    """Gives every passage of some groups a stranger before or after it.

    What is trained on is 70 words long, what is ranked later 100 to 250: the answer must be found inside. A stranger
    is a negative of some other group, so that nothing in the batch comes to contain another query's answer.
    """
    strangers = [group.passages[-1] for group in batch]
    return [_joined(group, strangers, generator) if generator.random() < share else group for group in batch]


def _joined(group: Group, strangers: Sequence[str], generator: random.Random) -> Group:
    others = [stranger for stranger in strangers if stranger not in group.passages] or [""]
    joined = []
    for passage in group.passages:
        parts = [passage, generator.choice(others)]
        generator.shuffle(parts)
        joined.append(" ".join(parts).strip())
    return replace(group, passages=tuple(joined))
