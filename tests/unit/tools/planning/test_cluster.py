"""The simulated service loses no request and agrees with queueing theory."""

import itertools
import math
import statistics
from collections import Counter
from dataclasses import replace

import pytest

from rerank_service.tools.bench.workload import Lengths
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.cluster import End, FinishedRequest, Fleet, SimulatedCluster, percentile, run
from rerank_service.tools.planning.costs import HAPROXY, NO_COSTS, CpuCost, StackCosts
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Arrival, Mix, Phase, arrivals

PAIR = 100
ONE_BY_ONE = ReplicaSpeed(tokens_per_s=1_000.0, max_in_flight=1, max_batch_tokens=PAIR)
"""A speed at which every batch has one pair and takes a tenth of a second."""
FAST = ReplicaSpeed(tokens_per_s=100_000.0, batch_overhead_s=0.002)


def load(mix: Mix, rps: float, count: int, seed: int = 0, burstiness: float = 1.0) -> list[Arrival]:
    return list(itertools.islice(arrivals(mix, [Phase(0, rps)], burstiness, seed), count))


def latencies(ended: list[FinishedRequest]) -> list[float]:
    return [one.latency_s for one in ended]


@pytest.mark.parametrize("utilisation", [0.3, 0.7, 0.85])
def test_waits_at_one_device_agree_with_queueing_theory(utilisation: float) -> None:
    """M/D/1 queue: the mean wait is utilisation / (2 (1 - utilisation)) service times (Pollaczek and Khinchine)."""
    service_s = PAIR / ONE_BY_ONE.tokens_per_s
    fleet = Fleet(1, ONE_BY_ONE, costs=NO_COSTS, timeout_s=math.inf)

    ended = run(fleet, load(Mix({1: 1}, PAIR), utilisation / service_s, 60_000))

    wait_s = statistics.mean(latencies(ended)) - service_s
    assert wait_s == pytest.approx(service_s * utilisation / (2 * (1 - utilisation)), rel=0.1)


def test_the_latency_of_a_single_request_is_the_sum_of_its_parts() -> None:
    costs = StackCosts(
        CpuCost(0.010, 0.0, 0.0), NO_COSTS.other, hop_s=0.020, front_s=0.030, tokenised_per_s=1_000_000.0
    )
    (ended,) = run(Fleet(1, FAST, costs=costs), [Arrival(0.0, [100] * 10)])

    assert ended.latency_s == pytest.approx(0.010 + 2 * 0.020 + 2 * 0.030 + 0.001 + 0.002 + 0.010)


def test_shards_of_a_large_request_are_scored_in_parallel() -> None:
    large = [Arrival(0.0, [400] * 160)]  # 64,000 tokens: four shards
    (alone,) = run(Fleet(1, FAST, costs=NO_COSTS), large)
    (spread,) = run(Fleet(4, FAST, costs=NO_COSTS), large)

    assert spread.latency_s == pytest.approx(alone.latency_s / 4, rel=0.05)


@pytest.mark.parametrize("timeout_s", [0.5, 3.0, math.inf])
@pytest.mark.parametrize("burstiness", [1.0, 8.0])
def test_every_request_ends_once_even_at_twice_the_capacity(timeout_s: float, burstiness: float) -> None:
    mix = Mix({1: 4, 20: 3, 100: 2, 300: 1}, Lengths.SHORT)
    requests = load(mix, 2 * 3 * 100_000 / mix.request_tokens, 600, burstiness=burstiness)

    ended = run(Fleet(3, FAST, ingresses=2, timeout_s=timeout_s), requests)

    assert sorted(one.at_s for one in ended) == [request.at_s for request in requests]
    assert all(one.latency_s <= timeout_s for one in ended if one.end is End.ANSWERED)
    if timeout_s == math.inf:
        assert Counter(one.end for one in ended) == {End.ANSWERED: 600}
    else:
        assert {End.ANSWERED, End.REFUSED} <= {one.end for one in ended}


def test_under_overload_refusals_keep_the_goodput_high() -> None:
    mix = Mix({20: 1}, 100)
    requests = load(mix, 2 * 100_000 / mix.request_tokens, 3_000)

    ended = run(Fleet(1, FAST, timeout_s=2.0), requests)

    answered = [one for one in ended if one.end is End.ANSWERED]
    capacity = FAST.full_tokens_per_s
    assert sum(one.num_tokens for one in answered) / requests[-1].at_s > 0.85 * capacity


def test_a_simulation_is_repeatable() -> None:
    requests = load(Mix({1: 1, 30: 1}, Lengths.SHORT), 100, 400)
    fleet = Fleet(4, FAST, ingresses=3)

    assert run(fleet, requests, seed=5) == run(fleet, requests, seed=5)


def test_more_replicas_do_not_raise_the_latency() -> None:
    requests = load(Mix({50: 1}, Lengths.SHORT), 30, 1_500)

    p99 = [percentile(latencies(run(Fleet(count, FAST), requests)), 0.99) for count in (2, 3, 4, 6, 12)]

    assert all(more <= 1.03 * fewer for fewer, more in itertools.pairwise(p99))
    assert p99[-1] < p99[0] / 2


def test_a_saturated_ingress_dominates_the_latency() -> None:
    requests = load(Mix({1: 1}, 10), 100, 2_000)
    slow = StackCosts(CpuCost(0.012, 0.0, 0.0), NO_COSTS.other, 0.0, 0.0, math.inf)

    one, two = (percentile(latencies(run(Fleet(8, FAST, count, slow), requests)), 0.5) for count in (1, 2))

    assert one > 1.0
    assert two < 0.1


def test_a_removed_replica_finishes_its_requests() -> None:
    clock, ended = Clock(), list[FinishedRequest]()
    cluster = SimulatedCluster(Fleet(2, FAST, costs=HAPROXY), clock, ended.append)
    for number in range(40):
        clock.at(number * 0.05, cluster.send, Arrival(number * 0.05, [100] * 40))
    clock.at(1.0, cluster.remove_replica)
    clock.run()

    assert [one.end for one in ended] == [End.ANSWERED] * 40
    assert cluster.num_replicas == 1


def test_percentiles_use_the_nearest_rank() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile(list(map(float, range(1, 101))), 0.99) == 99.0
    assert percentile([], 0.99) == math.inf


def test_many_ingresses_route_almost_as_well_as_one() -> None:
    """Without reports from replicas, the p99 with 16 ingresses was four times the p99 with one ingress."""
    mix = Mix({10: 4, 40: 3, 160: 1}, Lengths.SHORT)
    requests = load(mix, 0.85 * 24 * FAST.full_tokens_per_s / mix.request_tokens, 2_500)
    costs = StackCosts(CpuCost(0.0, 0.0, 0.0), NO_COSTS.other, 0.0013, 0.0013, math.inf)

    p99 = {
        number: percentile(latencies(run(Fleet(24, FAST, number, costs, math.inf), requests))[250:], 0.99)
        for number in (1, 4, 16)
    }

    assert p99[4] < 1.15 * p99[1]
    assert p99[16] < 1.4 * p99[1]


def test_a_slow_replica_does_not_slow_down_all_requests() -> None:
    mix = Mix({10: 4, 40: 3, 160: 1}, Lengths.SHORT)
    requests = load(mix, 0.7 * 7.5 * FAST.full_tokens_per_s / mix.request_tokens, 1_500)
    mixed = Fleet(8, FAST, 4, NO_COSTS, math.inf, slow_replicas=1)

    p99 = [percentile(latencies(run(fleet, requests)), 0.99) for fleet in (replace(mixed, slow_replicas=0), mixed)]

    assert p99[1] < 1.5 * p99[0]
