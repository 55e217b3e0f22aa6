"""Load of a fleet on ingresses and controller; the constants equal the recorded measurements."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerank_service.tools.planning import limits
from rerank_service.tools.planning.capacity import cost_per_million_passages
from rerank_service.tools.planning.costs import HAPROXY, SERVE_PROXY, StackCosts
from rerank_service.tools.planning.fleet import Demand
from rerank_service.tools.planning.limits import CONTROLLER_SHARE, Cadence, limits_of, most_replicas
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Mix

_RESULTS = Path(__file__).parents[4] / "benchmarks" / "results"
DEMAND = Demand(Mix({100: 1}, 256), rps=600.0, p99_s=0.5, speed=ReplicaSpeed(200_000.0))


def recorded(file: str) -> Any:
    return json.loads((_RESULTS / file).read_text(encoding="utf-8"))["results"]


def test_costs_of_routing_and_deciding_equal_the_measurements() -> None:
    rows = recorded("control-plane.json")
    many = rows[-1]

    assert many["route_a_shard_us"] / many["replicas"] == pytest.approx(limits.ROUTE_US_PER_REPLICA, rel=0.1)
    for row in rows:
        decide_us = 1e6 * limits.decision_s(row["replicas"], row["handles"])
        assert decide_us == pytest.approx(row["decide_us"], rel=0.1)
    assert many["take_in_handle_report_us"] / many["replicas"] == pytest.approx(limits.SERIES_REPORT_US, rel=0.1)
    assert many["membership_bytes_a_replica"] == pytest.approx(limits.MEMBERSHIP_BYTES, rel=0.1)


@pytest.mark.parametrize("interval_s", [1.0, 10.0])
def test_costs_of_the_controller_equal_the_measurements(interval_s: float) -> None:
    measured = recorded("stack-control.json")
    cadence = Cadence(interval_s, interval_s)
    few, many = (row for row in measured["idle"] if row["interval_s"] == interval_s)

    for row in (few, many):
        cpus = limits.controller_cpus(row["replicas"], 1, cadence)
        assert cpus == pytest.approx(row["cpus"]["controller"], rel=0.15)


@pytest.mark.parametrize(
    ("costs", "file"), [(HAPROXY, "stack-costs.json"), (SERVE_PROXY, "stack-costs-serve-proxy.json")]
)
def test_costs_of_a_request_equal_the_measurements(costs: StackCosts, file: str) -> None:
    measured = recorded(file)

    for cost, fit in ((costs.ingress, measured["ingress"]), (costs.other, measured["other"])):
        assert cost.request_s == pytest.approx(fit["ms"] / 1000, rel=0.05)
        assert cost.kb_s == pytest.approx(fit["ms_a_kb"] / 1000, rel=0.05)
        assert cost.shard_s == pytest.approx(fit["ms_a_shard"] / 1000, rel=0.05)
    alone_s = costs.ingress.of(0.5, 1) + 2 * costs.hop_s + 2 * costs.front_s
    assert alone_s == pytest.approx(measured["alone_ms"] / 1000, rel=0.05)


def test_the_controller_limits_a_large_cluster() -> None:
    each_second, each_ten_seconds = (
        limits_of(replace(DEMAND, rps=7_000.0), 1_000, cadence) for cadence in (Cadence(1, 1), Cadence(10, 10))
    )

    assert each_ten_seconds.controller_cpus < each_second.controller_cpus
    assert each_second.controller_messages_per_s == 2 * (1_000 + each_second.ingresses)
    assert each_second.router_entries == 1_000 * each_second.ingresses


@pytest.mark.parametrize("cadence", [Cadence(1, 1), Cadence(10, 10)])
def test_the_largest_fleet_uses_the_controllers_whole_share(cadence: Cadence) -> None:
    most = most_replicas(0.05, cadence)

    def cpus(replicas: int) -> float:
        return limits.controller_cpus(replicas, -(-replicas // 20), cadence)

    assert cpus(most) <= CONTROLLER_SHARE < cpus(most + 20)


def test_the_cost_per_million_passages() -> None:
    # 600 x 100 passages per second are 216 million per hour.
    assert cost_per_million_passages(DEMAND, 108, price_per_gpu_hour=2.0) == pytest.approx(1.0)
