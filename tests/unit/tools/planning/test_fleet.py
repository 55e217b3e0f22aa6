"""Tests the search for the smallest fleet."""

import math
from dataclasses import replace

import pytest

from rerank_service.tools.planning.costs import HAPROXY
from rerank_service.tools.planning.fleet import (
    CannotMeet,
    Demand,
    FleetPlan,
    fewest_replicas,
    first_enough,
    ingresses_for,
    measure,
    smallest,
)
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Mix

DEMAND = Demand(Mix({20: 1}, 200), rps=40, p99_s=0.25, speed=ReplicaSpeed(50_000.0, batch_overhead_s=0.002))


@pytest.fixture(scope="module")
def plan() -> FleetPlan:
    return smallest(DEMAND)


def test_one_replica_fewer_misses_the_target(plan: FleetPlan) -> None:
    fewer = measure(DEMAND, plan.replicas - 1)
    assert plan.measured.p99_s <= DEMAND.p99_s
    assert fewer is not None
    assert fewer.p99_s > DEMAND.p99_s
    assert plan.replicas >= plan.fewest_replicas == fewest_replicas(DEMAND) == 4


def test_bursts_and_shorter_targets_need_more_replicas(plan: FleetPlan) -> None:
    usual = plan.replicas

    assert smallest(replace(DEMAND, burstiness=8.0)).replicas > usual
    assert smallest(replace(DEMAND, p99_s=0.15)).replicas > usual
    assert smallest(replace(DEMAND, p99_s=2.0)).replicas <= usual


def test_an_unreachable_target_reports_the_best_p99() -> None:
    with pytest.raises(CannotMeet) as refused:
        smallest(replace(DEMAND, p99_s=0.05))  # 4,000 tokens alone take 80 ms

    assert 0.08 < refused.value.p99_s < 0.2


def test_a_measurement_ends_early_once_the_target_is_missed() -> None:
    assert measure(DEMAND, 3, may_miss=False) is None
    missed = measure(DEMAND, 3)
    assert missed is not None
    assert missed.p99_s > DEMAND.p99_s
    assert missed.p99_low_s <= missed.p99_s <= missed.p99_high_s


def test_refused_requests_miss_the_target() -> None:
    hurried = replace(DEMAND, timeout_s=0.3, p99_s=0.3)

    measured = measure(hurried, 3)

    assert measured is not None
    assert measured.num_refused > 0.01 * measured.num_requests
    assert measured.p99_s == math.inf


@pytest.mark.parametrize("threshold", [3, 4, 10, 11, 12, 13, 57, 900])
@pytest.mark.parametrize("start", [3, 11, 200])
def test_the_search_finds_the_first_sufficient_number(threshold: int, start: int) -> None:
    tried: list[int] = []

    def is_enough(count: int) -> bool:
        tried.append(count)
        return count >= threshold

    assert first_enough(is_enough, 3, start) == threshold
    assert len(tried) < 30
    assert min(tried) >= 3


def test_ingresses_have_headroom() -> None:
    demand = replace(DEMAND, rps=1_000)
    cpu_s = HAPROXY.ingress.of(demand.mix.request_kb, 1)

    assert ingresses_for(demand) == math.ceil(1_000 * cpu_s / 0.6)
