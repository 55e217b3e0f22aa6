"""Tests the simulated loss of a region, as observed in a surviving region."""

import itertools
from dataclasses import replace

import pytest

from rerank_service.tools.planning.fleet import Demand
from rerank_service.tools.planning.region import Loss, lose_region, replicas_kept
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Mix

DEMAND = Demand(Mix({20: 1}, 200), rps=30, p99_s=0.3, speed=ReplicaSpeed(50_000.0), timeout_s=5.0)


def test_new_replicas_restore_the_target() -> None:
    lost = lose_region(DEMAND, 4, Loss(regions=2, start_s=20.0, watched_s=120.0))

    assert lost.replicas_before == 4
    assert lost.replicas[-1] >= 2 * 30 * 4_000 / 50_000
    assert lost.worst_p99_s > DEMAND.p99_s
    assert lost.num_refused > 0  # requests have a limit of 5 s, and half of the replicas are missing
    assert lost.recovered_after_s is not None
    assert 20 < lost.recovered_after_s < 90
    assert lost.unreachable == 300
    assert all(before <= after for before, after in itertools.pairwise(lost.replicas))


def test_with_headroom_clients_do_not_notice_a_loss() -> None:
    lost = lose_region(DEMAND, 8, Loss(regions=2, start_s=20.0, watched_s=60.0))

    assert (lost.num_refused, lost.recovered_after_s) == (0, 0.0)


def test_without_room_to_grow_a_region_never_recovers() -> None:
    lost = lose_region(DEMAND, 4, Loss(regions=2, start_s=5.0, max_replicas=4, watched_s=60.0))

    assert lost.recovered_after_s is None


def test_more_regions_soften_a_loss() -> None:
    two, four = (lose_region(DEMAND, 4, Loss(regions=count, start_s=20.0, watched_s=60.0)) for count in (2, 4))

    assert four.worst_p99_s < two.worst_p99_s


def test_a_single_region_cannot_be_lost() -> None:
    with pytest.raises(ValueError, match="at least two regions"):
        lose_region(DEMAND, 4, Loss(regions=1, start_s=5.0))


def test_a_region_runs_the_replicas_its_autoscaler_keeps() -> None:
    assert replicas_kept(DEMAND, 1, 0.8) == 3
    assert replicas_kept(replace(DEMAND, rps=1), 4, 0.8) == 4
