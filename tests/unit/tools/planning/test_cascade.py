"""Tests the plan of a cascade."""

import itertools
import math
from dataclasses import replace

import pytest

from rerank_service.tools.planning.cascade import (
    CascadePlan,
    Keep,
    Stage,
    measure_cascade,
    num_kept,
    plan_cascade,
    stage_demands,
)
from rerank_service.tools.planning.costs import HAPROXY, NO_COSTS, CpuCost, StackCosts
from rerank_service.tools.planning.fleet import CannotMeet, Demand, Measured, fewest_replicas, measure, smallest
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Mix

SMALL, LARGE = ReplicaSpeed(100_000.0), ReplicaSpeed(20_000.0)
STAGES = [Stage("small", SMALL, keep=2), Stage("large", LARGE)]
DEMAND = Demand(Mix({8: 1}, 200), rps=110, p99_s=0.12, speed=SMALL)


@pytest.fixture(scope="module")
def plan() -> CascadePlan:
    return plan_cascade(DEMAND, STAGES, price_per_gpu_hour=2.0)


def measured(demand: Demand, replicas: tuple[int, ...], num_requests: int = 1_500) -> Measured:
    found = measure_cascade(stage_demands(demand, STAGES), STAGES, replicas, num_requests)
    assert found is not None
    return found


def test_one_replica_fewer_misses_the_target_however_it_is_divided(plan: CascadePlan) -> None:
    demands = stage_demands(DEMAND, STAGES)
    fewer = [(small, plan.replicas - 1 - small) for small in range(1, plan.replicas - 1)]
    can_keep_up = [
        division
        for division in fewer
        if all(count >= fewest_replicas(one) for count, one in zip(division, demands, strict=True))
    ]

    assert plan.measured.p99_s <= DEMAND.p99_s
    assert can_keep_up
    assert all(measured(DEMAND, division, 6_000).p99_s > DEMAND.p99_s for division in can_keep_up)


def test_the_plan_describes_each_stage_and_the_last_model_alone(plan: CascadePlan) -> None:
    small, large = plan.stages

    assert plan.replicas == small.replicas + large.replicas
    assert (small.mean_passages, large.mean_passages) == (8, 2)
    assert all(stage.fewest_replicas <= stage.replicas <= stage.kept_replicas for stage in plan.stages)
    assert plan.alone == smallest(replace(DEMAND, speed=LARGE))
    assert plan.alone.replicas > plan.replicas
    assert plan.cost_per_million_passages == pytest.approx(plan.replicas * 2.0 / (110 * 8 * 3600) * 1e6)


def test_the_latency_of_a_request_is_the_sum_of_its_stages() -> None:
    costs = StackCosts(
        CpuCost(0.010, 0.0, 0.002), NO_COSTS.other, hop_s=0.020, front_s=0.030, tokenised_per_s=1_000_000.0
    )
    rare = replace(DEMAND, rps=0.01, costs=costs)
    small_s, large_s = 0.002 + 1600 / 1e6 + 1600 / 100_000, 0.002 + 400 / 1e6 + 400 / 20_000

    assert measured(rare, (1, 1), 50).p50_s == pytest.approx(2 * 0.030 + 0.010 + 4 * 0.020 + small_s + large_s)


def test_behind_a_stage_without_cost_the_last_stage_behaves_as_if_alone() -> None:
    instant = replace(SMALL, tokens_per_s=1e12)
    stages = [Stage("instant", instant, keep=2), Stage("large", LARGE)]
    demand = replace(DEMAND, costs=NO_COSTS)
    alone = measure(replace(demand, mix=Mix({2: 1}, 200), speed=LARGE), 3, 1_500)

    cascade = measure_cascade(stage_demands(demand, stages), stages, (1, 3), 1_500)

    assert alone is not None
    assert cascade is not None
    assert cascade.p50_s == pytest.approx(alone.p50_s, rel=0.01)
    assert cascade.p99_s == pytest.approx(alone.p99_s, rel=0.05)


def test_the_time_limit_covers_all_stages() -> None:
    slow_last = [Stage("small", SMALL, keep=8), Stage("large", LARGE)]  # 1,600 tokens take 80 ms in the last stage
    demand = replace(DEMAND, rps=2, timeout_s=0.09, p99_s=0.09)
    enough = replace(demand, timeout_s=0.5, p99_s=0.5)

    late, in_time = (measure_cascade(stage_demands(one, slow_last), slow_last, (1, 4), 200) for one in (demand, enough))

    assert late is not None
    assert late.p99_s == math.inf  # 16 ms and 80 ms: each stage alone would be in time
    assert late.num_refused == late.num_requests
    assert in_time is not None
    assert in_time.num_refused == 0


def test_both_stages_load_the_same_ingresses() -> None:
    busy = StackCosts(CpuCost(0.0, 0.0, 0.005), NO_COSTS.other, 0.0, 0.0, math.inf)
    demand = replace(DEMAND, costs=busy)  # 110 requests/s with a shard in each of two stages: 1.1 CPUs

    one, two = stage_demands(demand, STAGES)

    assert one.ingress_cpu_s == two.ingress_cpu_s == 0.005
    assert measured(demand, (8, 8)).p50_s < 0.1  # with one ingress, the requests would queue without end


@pytest.mark.parametrize(
    ("keep", "size", "kept"), [(50, 100, 50), (50, 20, 20), (0.1, 100, 10), (0.1, 101, 11), (0.2, 1, 1)]
)
def test_a_share_is_rounded_up_and_nothing_is_added(keep: Keep, size: int, kept: int) -> None:
    assert num_kept(keep, size) == kept


def test_sizes_that_keep_the_same_number_are_added_up() -> None:
    stages = [Stage("small", SMALL, keep=10), Stage("large", LARGE, keep=0.5), Stage("largest", LARGE)]

    mixes = [one.mix.passages for one in stage_demands(replace(DEMAND, mix=Mix({8: 1, 10: 2, 512: 3}, 200)), stages)]

    assert mixes == [{8: 1, 10: 2, 512: 3}, {8: 1, 10: 5}, {4: 1, 5: 5}]


def test_only_the_first_stage_has_the_proxy_and_the_constant_cost_of_a_request() -> None:
    first, *later = stage_demands(DEMAND, [*STAGES[:1], Stage("large", LARGE, keep=1), Stage("largest", LARGE)])

    assert first.costs == HAPROXY
    assert all((one.costs.front_s, one.costs.ingress.request_s) == (0.0, 0.0) for one in later)
    assert all(one.costs.ingress.shard_s == HAPROXY.ingress.shard_s for one in later)


def test_an_unreachable_target_reports_the_best_p99() -> None:
    with pytest.raises(CannotMeet) as refused:
        plan_cascade(replace(DEMAND, p99_s=0.02), STAGES)

    assert 0.036 < refused.value.p99_s < 0.1


def test_divisions_are_complete_and_ordered_by_their_sum() -> None:
    from rerank_service.tools.planning.cascade import _divisions

    found = list(itertools.takewhile(lambda counts: sum(counts) <= 9, _divisions([2, 1, 3])))

    assert len(found) == len(set(found)) == 1 + 3 + 6 + 10
    assert [sum(counts) for counts in found] == sorted(sum(counts) for counts in found)
    assert all(counts >= (2, 1, 3) and min(map(int.__sub__, counts, (2, 1, 3))) >= 0 for counts in found)
