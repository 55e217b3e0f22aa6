"""How a large fleet is divided into cells."""

import math
from dataclasses import replace

import pytest

from rerank_service.tools.planning.capacity import plan_capacity
from rerank_service.tools.planning.cells import cells_of, fewest_cells, fullest_cell
from rerank_service.tools.planning.fleet import Demand
from rerank_service.tools.planning.limits import Cadence
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Mix

DEMAND = Demand(Mix({100: 1}, 256), rps=6_250.0, p99_s=0.5, speed=ReplicaSpeed(200_000.0))
"""Load that keeps 1,000 replicas 80% busy."""


def test_a_thousand_replicas_need_six_cells() -> None:
    cells = fewest_cells(DEMAND, 1_000)

    assert (cells.count, cells.replicas) == (6, 167)
    assert cells.replicas < cells.most_replicas
    assert cells.busy_after_loss == pytest.approx(0.96, abs=0.01)
    assert not cells_of(DEMAND, 1_000, 5).are_enough  # the other four would be fully busy


def test_one_cell_is_never_enough_for_the_loss_of_one() -> None:
    alone = cells_of(DEMAND, 1_000, 1)

    assert alone.busy_after_loss == math.inf
    assert alone.controller_cpus > 1
    assert not alone.are_enough


def test_without_spare_room_the_controllers_decide() -> None:
    cells = fewest_cells(replace(DEMAND, rps=7_700.0), 1_000)

    assert cells.replicas <= cells.most_replicas < cells_of(DEMAND, 1_000, cells.count - 1).replicas


def test_slower_reports_allow_larger_cells() -> None:
    often, rarely = (cells_of(DEMAND, 1_000, 2, cadence) for cadence in (Cadence(), Cadence(10.0, 10.0)))

    assert often.replicas > often.most_replicas
    assert rarely.replicas < rarely.most_replicas


def test_the_fullest_cell_by_hash_of_tenant() -> None:
    assert fullest_cell([1.0], 4) == 4.0
    assert fullest_cell([1.0] * 500, 1) == 1.0
    few, many = (max(fullest_cell([1.0] * tenants, 6, seed) for seed in range(5)) for tenants in (30, 3_000))
    assert 1.0 < many < few


def test_a_plan_names_clusters_once_one_controller_is_not_enough() -> None:
    demand = replace(DEMAND, rps=20.0, p99_s=5.0)
    assert plan_capacity(demand).cells is None

    report = plan_capacity(demand, cadence=Cadence(0.004, 0.004))
    assert report.limits.most_replicas < report.kept_replicas
    assert report.cells is not None
    assert report.cells.count > 1
    assert report.cells.replicas <= report.cells.most_replicas
