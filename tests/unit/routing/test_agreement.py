"""Kendall's tau, the overlap of the best passages, and the differences of logits."""

import random
from itertools import combinations

import pytest

from rerank_service.routing.agreement import compare, kendall_tau


def tau_by_definition(first: list[float], second: list[float]) -> float | None:
    """Tau-b by counting every pair, as Kendall (1945) defines it."""
    signs = [
        ((a > b) - (a < b), (c > d) - (c < d)) for (a, c), (b, d) in combinations(zip(first, second, strict=True), 2)
    ]
    untied, untied_other = sum(x != 0 for x, _ in signs), sum(y != 0 for _, y in signs)
    if not untied or not untied_other:
        return None
    difference = sum(x * y for x, y in signs)
    return float(difference / (untied * untied_other) ** 0.5)


@pytest.mark.parametrize("num_values", [2, 5, 1000])
def test_tau_equals_its_definition(num_values: int) -> None:
    """Few values give many ties."""
    chance = random.Random(num_values)
    for _ in range(200):
        size = chance.randint(1, 30)
        first, second = ([float(chance.randrange(num_values)) for _ in range(size)] for _ in range(2))

        expected = tau_by_definition(first, second)

        assert kendall_tau(first, second) == (expected if expected is None else pytest.approx(expected))


def test_equal_rankings_agree_fully() -> None:
    logits = [0.5, -3.0, 2.25, 2.25]

    assert compare(logits, [10 * logit for logit in logits])[:2] == (1.0, 1.0)


def test_opposite_rankings_disagree_fully() -> None:
    logits = [float(number) for number in range(20)]

    agreement = compare(logits, logits[::-1])

    assert agreement.kendall_tau == -1.0
    assert agreement.top_overlap == 0.0
    assert agreement.mean_difference == 10.0
    assert agreement.largest_difference == 19.0


def test_the_overlap_counts_the_best_ten() -> None:
    first = [float(-number) for number in range(12)]
    second = first.copy()
    second[9], second[10] = second[10], second[9]  # the tenth passage leaves the best ten

    assert compare(first, second).top_overlap == 0.9


def test_a_single_passage_has_no_order() -> None:
    assert compare([1.0], [3.0]) == (None, 1.0, 2.0, 2.0)
