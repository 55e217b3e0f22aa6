"""The loss of a region, seen from another one."""

import itertools
from dataclasses import replace

import pytest

from rerank_service.tools.planning.fleet import Demand
from rerank_service.tools.planning.region import Loss, lose_region, replicas_kept
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Mix

DEMAND = Demand(Mix({20: 1}, 200), rps=30, p99_s=0.3, speed=ReplicaSpeed(50_000.0), timeout_s=5.0)


def test_replicas_start_and_the_target_is_kept_again() -> None:
    lost = lose_region(DEMAND, 4, Loss(regions=2, start_s=20.0, watched_s=120.0))

    assert lost.replicas_before == 4
    assert lost.replicas[-1] >= 2 * 30 * 4_000 / 50_000
    assert lost.worst_p99_s > DEMAND.p99_s
    assert lost.num_refused > 0  # of 5 s time, while half the replicas are missing
    assert lost.recovered_after_s is not None
    assert 20 < lost.recovered_after_s < 90
    assert lost.unreachable == 300
    assert all(before <= after for before, after in itertools.pairwise(lost.replicas))


def test_with_room_for_it_nobody_notices() -> None:
    lost = lose_region(DEMAND, 8, Loss(regions=2, start_s=20.0, watched_s=60.0))

    assert (lost.num_refused, lost.recovered_after_s) == (0, 0.0)


def test_without_room_to_grow_it_never_recovers() -> None:
    lost = lose_region(DEMAND, 4, Loss(regions=2, start_s=5.0, max_replicas=4, watched_s=60.0))

    assert lost.recovered_after_s is None


def test_the_more_regions_the_less_each_feels() -> None:
    two, four = (lose_region(DEMAND, 4, Loss(regions=count, start_s=20.0, watched_s=60.0)) for count in (2, 4))

    assert four.worst_p99_s < two.worst_p99_s


def test_the_only_region_cannot_be_lost() -> None:
    with pytest.raises(ValueError, match="none can be lost"):
        lose_region(DEMAND, 4, Loss(regions=1, start_s=5.0))


def test_a_region_runs_what_its_autoscaler_would_have() -> None:
    assert replicas_kept(DEMAND, 1, 0.8) == 3
    assert replicas_kept(replace(DEMAND, rps=1), 4, 0.8) == 4
