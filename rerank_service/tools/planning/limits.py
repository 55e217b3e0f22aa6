"""Load that a fleet puts on ingresses, routers and Serve's single controller, computed from measured costs.

The costs come from `control-plane.json` and `stack-control.json` in `benchmarks/results`; a test checks that the values
are equal.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

from rerank_service.config import AutoscalingConfig, ReplicaConfig
from rerank_service.tools.planning.autoscaler import TICK_S
from rerank_service.tools.planning.fleet import Demand, ingresses_for

__all__ = [
    "CONTROLLER_SHARE",
    "Cadence",
    "Limits",
    "controller_cpus",
    "decision_s",
    "limits_of",
    "most_replicas",
]

ROUTE_US_PER_REPLICA = 0.91
"""CPU time for choosing a replica for one shard, per replica in the table."""
DECIDE_US = 180.0
DECIDE_US_PER_SERIES, DECIDE_US_PER_FURTHER_SERIES = 0.49, 0.70
FEW_SERIES = 4_500
"""CPU time of one autoscaling decision, including Serve's aggregation of the reports: a constant, a part for each of
`FEW_SERIES`, and a larger part for each further series. Each ingress reports one series per replica."""
SERIES_REPORT_US = 0.37
"""CPU time for receiving one series of an ingress's report."""
MEMBERSHIP_BYTES = 145.0
"""Bytes per existing replica that each ingress receives whenever a replica is added or removed."""
CONTROLLER_IDLE_CPUS = 0.036
CONTROLLER_US_PER_REPLICA = 650.0
CONTROLLER_US_PER_MESSAGE = 1_040.0
"""Measured costs of the real controller: its busy CPUs without replicas, its CPU time in each second for each idle
replica, and its CPU time per report or health check."""

CONTROLLER_SHARE = 0.7
"""Utilisation of the controller's core above which decisions and health checks are late."""


@dataclass(frozen=True)
class Cadence:
    """Intervals of reports and health checks."""

    metrics_interval_s: float = AutoscalingConfig().metrics_interval_s
    health_check_period_s: float = ReplicaConfig().health_check_period_s


@dataclass(frozen=True)
class Limits:
    """Resources that a fleet needs in addition to its devices."""

    ingresses: int
    ingress_cpus: float
    """Busy CPUs of all ingresses."""
    other_cpus: float
    """Busy CPUs of the proxies, the replicas' event loops, and Ray."""
    router_entries: int
    """Total number of entries in the routing tables of all ingresses."""
    route_us: float
    """CPU time of an ingress for choosing a replica for one shard."""
    controller_messages_per_s: float
    """Reports from replicas and ingresses, plus health checks."""
    decide_ms: float
    """CPU time of the controller per autoscaling decision; the controller decides several times per second."""
    controller_cpus: float
    """Busy CPUs of the controller, which can use at most one core."""
    membership_mb: float
    """Data sent to all ingresses when one replica is added or removed."""
    most_replicas: int
    """Largest fleet that the controller can manage at this cadence, if ingresses are added in proportion."""


def limits_of(demand: Demand, replicas: int, cadence: Cadence | None = None) -> Limits:
    """Computes the resources of a cluster with one Serve controller."""
    cadence = cadence or Cadence()
    ingresses = ingresses_for(demand)
    route_s = ROUTE_US_PER_REPLICA * replicas / 1e6
    return Limits(
        ingresses=ingresses,
        ingress_cpus=demand.rps * (demand.ingress_cpu_s + demand.num_shards * route_s),
        other_cpus=demand.rps * demand.costs.other.of(demand.mix.request_kb, demand.num_shards),
        router_entries=ingresses * replicas,
        route_us=route_s * 1e6,
        controller_messages_per_s=_messages_per_s(replicas, ingresses, cadence),
        decide_ms=decision_s(replicas, ingresses) * 1000,
        controller_cpus=controller_cpus(replicas, ingresses, cadence),
        membership_mb=ingresses * replicas * MEMBERSHIP_BYTES / 1e6,
        most_replicas=most_replicas(ingresses / replicas, cadence),
    )


def most_replicas(ingresses_per_replica: float, cadence: Cadence) -> int:
    """Largest number of replicas at which the controller stays within `CONTROLLER_SHARE` of its core."""

    def cpus(replicas: int) -> float:
        return controller_cpus(replicas, math.ceil(replicas * ingresses_per_replica), cadence)

    within = bisect_right(range(1, 1_000_000), CONTROLLER_SHARE, key=cpus)  # load grows with the number of replicas
    return max(1, within)


def _messages_per_s(replicas: int, ingresses: int, cadence: Cadence) -> float:
    processes = replicas + ingresses
    return processes / cadence.metrics_interval_s + processes / cadence.health_check_period_s


def decision_s(replicas: int, ingresses: int) -> float:
    """CPU-seconds of one autoscaling decision."""
    series = replicas * ingresses
    further = max(0, series - FEW_SERIES)
    return (DECIDE_US + DECIDE_US_PER_SERIES * (series - further) + DECIDE_US_PER_FURTHER_SERIES * further) / 1e6


def controller_cpus(replicas: int, ingresses: int, cadence: Cadence) -> float:
    """Busy CPUs of the controller: costs per process and message, plus costs that grow with replicas x ingresses."""
    messages = _messages_per_s(replicas, ingresses, cadence) * CONTROLLER_US_PER_MESSAGE / 1e6
    processes = (replicas + ingresses) * CONTROLLER_US_PER_REPLICA / 1e6
    series = ingresses * replicas * SERIES_REPORT_US / cadence.metrics_interval_s / 1e6
    decide_s = decision_s(replicas, ingresses)
    return CONTROLLER_IDLE_CPUS + messages + processes + series + decide_s / (TICK_S + decide_s)
