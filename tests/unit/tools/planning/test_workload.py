"""Tests the simulated arrivals."""

import itertools
import math
import statistics

import pytest

from rerank_service.tools.bench.workload import Lengths
from rerank_service.tools.planning.workload import Arrival, Mix, Phase, arrivals

SMALL = Mix({1: 1}, 100)


def some(mix: Mix, rps: float, burstiness: float = 1.0, seed: int = 0, count: int = 20_000) -> list[Arrival]:
    return list(itertools.islice(arrivals(mix, [Phase(0, rps)], burstiness, seed), count))


def gaps(requests: list[Arrival]) -> list[float]:
    return [after.at_s - before.at_s for before, after in itertools.pairwise(requests)]


def test_a_seed_gives_the_same_requests_at_any_rate() -> None:
    mix = Mix({1: 4, 20: 1}, Lengths.SHORT)
    slow, fast, other = some(mix, 1, count=200), some(mix, 10, count=200), some(mix, 1, seed=1, count=200)

    assert [request.lengths for request in slow] == [request.lengths for request in fast]
    assert [request.at_s for request in slow] == pytest.approx([10 * request.at_s for request in fast])
    assert slow != other


@pytest.mark.parametrize("burstiness", [1.0, 4.0, 16.0])
def test_gaps_have_the_given_mean_and_variation(burstiness: float) -> None:
    drawn = gaps(some(SMALL, 50, burstiness, count=200_000))

    assert statistics.mean(drawn) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.variance(drawn) / statistics.mean(drawn) ** 2 == pytest.approx(burstiness, rel=0.1)


def test_the_rate_changes_with_the_phase() -> None:
    requests = list(itertools.islice(arrivals(SMALL, [Phase(0, 100), Phase(50, 300)]), 20_000))

    before = sum(request.at_s < 50 for request in requests)
    after = sum(50 <= request.at_s < 100 for request in requests)
    assert before == pytest.approx(5_000, rel=0.05)
    assert after == pytest.approx(15_000, rel=0.05)


@pytest.mark.parametrize("tokens", [256, *Lengths])
def test_means_equal_the_means_of_drawn_requests(tokens: int | Lengths) -> None:
    mix = Mix({1: 3, 40: 1}, tokens)
    drawn = some(mix, 1)

    sizes = [len(request.lengths) for request in drawn]
    pairs = [length for request in drawn for length in request.lengths]
    assert statistics.mean(sizes) == pytest.approx(mix.mean_passages, rel=0.05)
    assert statistics.mean(pairs) == pytest.approx(mix.mean_tokens, rel=0.05)
    assert sum(map(sum, (request.lengths for request in drawn))) / len(drawn) == pytest.approx(
        mix.request_tokens, rel=0.05
    )


def test_attended_tokens_weigh_pairs_by_length() -> None:
    assert Mix({1: 1}, 300).attended_tokens == 300
    assert Mix({1: 1}, Lengths.LONG_TAIL).attended_tokens > 2 * Mix({1: 1}, Lengths.LONG_TAIL).mean_tokens


@pytest.mark.parametrize(
    ("passages", "tokens", "message"),
    [
        ({}, 1, "needs sizes"),
        ({0: 1.0}, 1, "needs sizes"),
        ({1: 0.0}, 1, "needs sizes"),
        ({1: math.inf}, 1, "needs sizes"),
        ({1: math.nan}, 1, "needs sizes"),
        ({1: 1.0}, 0, "1 to 1,000,000 tokens"),
        ({1: 1.0}, 1_000_001, "1 to 1,000,000 tokens"),
    ],
)
def test_a_mix_that_cannot_be_drawn_is_an_error(passages: dict[int, float], tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mix(passages, tokens)
