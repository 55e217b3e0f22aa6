"""What a fleet asks of everything but its devices; the constants are those recorded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerank_service.planning import limits as planned
from rerank_service.planning.answer import cost_per_million_passages
from rerank_service.planning.costs import HAPROXY
from rerank_service.planning.fleet import Demand
from rerank_service.planning.limits import CONTROLLER_SHARE, Cadence, limits_of, most_replicas
from rerank_service.planning.speed import ReplicaSpeed
from rerank_service.planning.workload import Mix

_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
DEMAND = Demand(Mix({100: 1}, 256), rps=600.0, p99_s=0.5, speed=ReplicaSpeed(200_000.0))


def recorded(file: str) -> Any:
    return json.loads((_RESULTS / file).read_text(encoding="utf-8"))["results"]


def test_constants_of_routing_and_deciding_are_those_measured() -> None:
    rows = recorded("control-plane.json")
    few, many = rows[0], rows[-1]
    series = many["replicas"] * many["handles"]

    assert pytest.approx(many["route_a_shard_us"] / many["replicas"], rel=0.1) == planned.ROUTE_US_A_REPLICA
    decided_us = many["replicas"] * planned.DECIDE_US_A_REPLICA + series * planned.DECIDE_US_A_REPLICA_AND_HANDLE
    assert decided_us == pytest.approx(many["decide_us"], rel=0.1)
    assert pytest.approx(few["decide_us"] / few["replicas"], rel=0.3) == planned.DECIDE_US_A_REPLICA
    handle_us = many["take_in_handle_report_us"] / many["replicas"]
    assert pytest.approx(handle_us, rel=0.1) == planned.HANDLE_REPORT_US_A_REPLICA
    assert pytest.approx(many["membership_bytes_a_replica"], rel=0.1) == planned.MEMBERSHIP_BYTES


def test_constants_of_the_controller_are_those_measured() -> None:
    measured = recorded("stack-control.json")

    assert pytest.approx(measured["controller_us_a_replica"], rel=0.05) == planned.CONTROLLER_US_A_REPLICA
    assert pytest.approx(measured["controller_idle_cpus"], abs=0.005) == planned.CONTROLLER_IDLE_CPUS


def test_costs_of_a_request_are_those_measured() -> None:
    measured = recorded("stack-costs.json")

    for request in measured["requests"]:
        ingress_ms = 1000 * HAPROXY.ingress_cpu_s(request["kb"], request["shards"])
        assert ingress_ms == pytest.approx(request["cpu_ms"]["ingress"], rel=0.25)
    alone_ms = 1000 * (HAPROXY.ingress_cpu_s(0.5, 1) + 2 * HAPROXY.hop_s + 2 * HAPROXY.front_s)
    assert alone_ms == pytest.approx(measured["alone_ms"], rel=0.1)


def test_the_controller_is_what_a_large_cluster_runs_out_of() -> None:
    each_second, each_ten_seconds = (
        limits_of(replace(DEMAND, rps=7_000.0), 1_000, cadence) for cadence in (Cadence(1, 1), Cadence(10, 10))
    )

    assert each_ten_seconds.controller_cpus < each_second.controller_cpus
    assert each_second.controller_messages_per_s == 2 * (1_000 + each_second.ingresses)
    assert each_second.router_entries == 1_000 * each_second.ingresses


@pytest.mark.parametrize("cadence", [Cadence(1, 1), Cadence(10, 10)])
def test_the_most_replicas_are_where_the_controllers_share_is_used_up(cadence: Cadence) -> None:
    most = most_replicas(0.05, cadence)

    def cpus(replicas: int) -> float:
        return planned._controller_cpus(replicas, -(-replicas // 20), cadence)

    assert cpus(most) <= CONTROLLER_SHARE < cpus(most + 20)


def test_cost_is_what_the_replicas_cost_by_what_they_rank() -> None:
    # 600 x 100 passages a second are 216 million an hour.
    assert cost_per_million_passages(DEMAND, 108, price_per_gpu_hour=2.0) == pytest.approx(1.0)
