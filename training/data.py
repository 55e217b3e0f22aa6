"""Training groups, each with a query, the passage that answers the query, and hard negatives."""

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
"""Number of hash buckets. The passages of one bucket, with their queries, may be in the dev split."""


@dataclass(frozen=True)
class Group:
    """Training data of one query."""

    source: str
    query: str
    passages: tuple[str, ...]
    """The positive passage, then hard negatives."""


def read_groups(path: Path, sources: Sequence[str]) -> list[Group]:
    """Reads the groups of the given sources, in order, from a gzipped file with lines `{"src", "q", "pos", "negs"}`."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [
            Group(row["src"], row["q"], (row["pos"], *row["negs"]))
            for row in rows
            if row["src"] in sources and row["pos"] not in row["negs"]
        ]


def split_groups(groups: Sequence[Group], dev_per_source: int) -> tuple[list[Group], list[Group]]:
    """Splits groups into training and dev groups by the hash of the positive, so no passage is a positive in both."""
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
    """Yields batches endlessly. Sources are drawn in proportion to their shares, and their groups in shuffled order.

    Each time a group is used, `num_passages - 1` of its negatives are drawn at random.
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
    """Joins every passage of some groups with an unrelated passage, before or after it.

    Training passages have 70 words, but passages in the evaluation have 100 to 250, so the model must learn to find an
    answer inside. Unrelated passages are negatives of other groups, so no passage answers another query of the batch.
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
