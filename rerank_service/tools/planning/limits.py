"""What a fleet asks of ingresses, routers and Serve's single controller: arithmetic over measured costs.

The measurements are in `benchmarks/results/control-plane.json` and `stack-control.json`; a test compares.
"""

import math
from dataclasses import dataclass

from rerank_service.config import AutoscalingConfig, ReplicaConfig
from rerank_service.tools.planning.autoscaler import TICK_S
from rerank_service.tools.planning.fleet import Demand, ingresses_for

__all__ = ["CONTROLLER_SHARE", "Cadence", "Limits", "limits_of", "most_replicas"]

ROUTE_US_A_REPLICA = 0.23
"""Choosing a replica for a shard, for each there is."""
DECIDE_US = 100.0
DECIDE_US_A_REPLICA = 12.5
DECIDE_US_A_SERIES = 0.63
"""One decision of the autoscaling policy with Serve's adding up of what was reported; each ingress reports a series of
each replica."""
SERIES_REPORT_US = 0.43
"""Taking in one series of an ingress's report."""
MEMBERSHIP_BYTES = 145.0
"""That each ingress is sent for each replica whenever one comes or goes."""
CONTROLLER_IDLE_CPUS = 0.0335
CONTROLLER_US_A_REPLICA = 424.0
CONTROLLER_US_A_MESSAGE = 643.0
"""CPU a second of the real controller for each idle replica, and for each of its reports and health checks."""

CONTROLLER_SHARE = 0.7
"""Of its one core, beyond which decisions and health checks come late."""


@dataclass(frozen=True)
class Cadence:
    """How often replicas and ingresses talk to the controller."""

    metrics_interval_s: float = AutoscalingConfig().metrics_interval_s
    health_check_period_s: float = ReplicaConfig().health_check_period_s


@dataclass(frozen=True)
class Limits:
    """What a fleet takes besides its devices."""

    ingresses: int
    ingress_cpus: float
    """Busy ones, of all ingresses."""
    other_cpus: float
    """Proxies, the replicas' own event loops, Ray: busy CPUs."""
    router_entries: int
    """Replicas that each ingress keeps count of, added up."""
    route_us: float
    """CPU of an ingress for choosing the replica of one shard."""
    controller_messages_per_s: float
    """Reports of replicas and ingresses, and health checks."""
    decide_ms: float
    """Of the controller, several times a second."""
    controller_cpus: float
    """Of the one core it can use."""
    membership_mb: float
    """Sent in all when one replica comes or goes."""
    most_replicas: int
    """That the controller can have at this cadence, with ingresses in proportion."""


def limits_of(demand: Demand, replicas: int, cadence: Cadence | None = None) -> Limits:
    """Of one cluster (one Serve controller) with so many replicas."""
    cadence = cadence or Cadence()
    ingresses = ingresses_for(demand)
    num_shards = math.ceil(demand.mix.request_tokens / demand.speed.shard_tokens)
    cpu_s = demand.costs.ingress.of(demand.mix.request_kb, num_shards)
    return Limits(
        ingresses=ingresses,
        ingress_cpus=demand.rps * (cpu_s + num_shards * ROUTE_US_A_REPLICA * replicas / 1e6),
        other_cpus=demand.rps * demand.costs.other.of(demand.mix.request_kb, num_shards),
        router_entries=ingresses * replicas,
        route_us=ROUTE_US_A_REPLICA * replicas,
        controller_messages_per_s=_messages_per_s(replicas, ingresses, cadence),
        decide_ms=_decide_s(replicas, ingresses) * 1000,
        controller_cpus=_controller_cpus(replicas, ingresses, cadence),
        membership_mb=ingresses * replicas * MEMBERSHIP_BYTES / 1e6,
        most_replicas=most_replicas(ingresses / replicas, cadence),
    )


def most_replicas(ingresses_a_replica: float, cadence: Cadence) -> int:
    """The most with which the controller stays below `CONTROLLER_SHARE`."""
    few, many = 1, 1_000_000
    while many - few > 1:
        middle = (few + many) // 2
        cpus = _controller_cpus(middle, math.ceil(middle * ingresses_a_replica), cadence)
        few, many = (middle, many) if cpus <= CONTROLLER_SHARE else (few, middle)
    return few


def _messages_per_s(replicas: int, ingresses: int, cadence: Cadence) -> float:
    processes = replicas + ingresses
    return processes / cadence.metrics_interval_s + processes / cadence.health_check_period_s


def _decide_s(replicas: int, ingresses: int) -> float:
    return (DECIDE_US + replicas * (DECIDE_US_A_REPLICA + DECIDE_US_A_SERIES * ingresses)) / 1e6


def _controller_cpus(replicas: int, ingresses: int, cadence: Cadence) -> float:
    """What was measured on few processes, plus what grows with replicas times ingresses."""
    messages = _messages_per_s(replicas, ingresses, cadence) * CONTROLLER_US_A_MESSAGE / 1e6
    processes = (replicas + ingresses) * CONTROLLER_US_A_REPLICA / 1e6
    series = ingresses * replicas * SERIES_REPORT_US / cadence.metrics_interval_s / 1e6
    decide_s = _decide_s(replicas, ingresses)
    return CONTROLLER_IDLE_CPUS + messages + processes + series + decide_s / (TICK_S + decide_s)
