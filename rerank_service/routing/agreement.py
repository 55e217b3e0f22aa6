"""Measures how far two rankings of the same passages agree."""

import math
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from rerank_service.messages import rank_by_logit

__all__ = ["TOP", "Agreement", "compare", "kendall_tau"]

TOP = 10
"""Number of best passages whose overlap is measured."""


class Agreement(NamedTuple):
    """How far two rankings agree."""

    kendall_tau: float | None
    """Kendall's tau-b, from -1 to 1; null if one of the rankings gives all passages the same logit."""
    top_overlap: float
    """Share of the first ranking's best `TOP` passages that are also among the second ranking's best."""
    mean_difference: float
    """Mean absolute difference of the logits."""
    largest_difference: float


def compare(first: Sequence[float], second: Sequence[float]) -> Agreement:
    """Compares two rankings of the same passages by their logits, which are given in the passages' order."""
    differences = [abs(one - other) for one, other in zip(first, second, strict=True)]
    best, other_best = (set(rank_by_logit(logits)[:TOP]) for logits in (first, second))
    return Agreement(
        kendall_tau(first, second),
        len(best & other_best) / len(best),
        math.fsum(differences) / len(differences),
        max(differences),
    )


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b, which accounts for ties (Kendall 1945); null if one of the sequences is constant."""
    num_discordant, seen = 0, list[float]()
    # Among equal values of `first`, ascending values of `second` count no pair as discordant.
    for _, value in sorted(zip(first, second, strict=True)):
        num_discordant += len(seen) - bisect_right(seen, value)
        insort(seen, value)
    num_pairs = math.comb(len(first), 2)
    untied, untied_other = num_pairs - _tied(first), num_pairs - _tied(second)
    if not untied or not untied_other:
        return None
    difference = untied + untied_other - num_pairs + _tied(zip(first, second, strict=True)) - 2 * num_discordant
    return difference / math.sqrt(untied * untied_other)


def _tied(values: Iterable[Hashable]) -> int:
    """Number of pairs of equal values."""
    return sum(math.comb(count, 2) for count in Counter(values).values())
