"""Simulates the loss of a region: the other regions take over its load while new replicas start.

Regions are identical and independent, so one surviving region represents all of them. The failover of clients (by DNS
or a global load balancer) is modelled as a delay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from rerank_service.config import AutoscalingConfig
from rerank_service.tools.planning.autoscaler import Autoscaler, ScaledCluster
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.cluster import End, FinishedRequest, Fleet, SimulatedCluster, percentile
from rerank_service.tools.planning.fleet import Demand, ingresses_for
from rerank_service.tools.planning.workload import Phase, arrivals

__all__ = ["Loss", "RegionLoss", "lose_region", "replicas_kept"]

_WINDOW_S = 5
"""Length of the window over which a p99 is computed."""


@dataclass(frozen=True)
class Loss:
    """Assumptions about the loss of a region."""

    regions: int
    """Number of regions before the loss."""
    start_s: float
    """Startup time of a replica: node, image, weights, warm-up."""
    failover_s: float = 10.0
    """Time until the lost region's clients reach another region; until then, their requests fail."""
    max_replicas: int | None = None
    """Maximum replicas of each region; null: unlimited."""
    watched_s: float = 300.0
    """Simulated time after the loss."""
    calm_s: float = 30.0
    """Simulated time before the loss."""


@dataclass(frozen=True)
class RegionLoss:
    """Figures of a surviving region. Lists contain one value per second; the loss happens at `lost_at_s`."""

    lost_at_s: float
    replicas_before: int
    replicas_after: int
    replicas: list[int]
    p99_s: list[float]
    """p99 of the answered requests sent in the last five seconds; 0 if there were none."""
    refused: list[int]
    """Number of requests that ended with 503 or 504, by the second in which they were sent."""
    unreachable: float
    """Number of requests that failed because the lost region's clients had not failed over yet."""
    recovered_after_s: float | None
    """Time from the loss until p99 stays within the target and no request is refused; 0 if this is the case
    throughout, null if the region does not recover."""

    @property
    def worst_p99_s(self) -> float:
        """Highest p99 after the loss."""
        return max(self.p99_s[int(self.lost_at_s) :])

    @property
    def num_refused(self) -> int:
        """Number of requests refused or timed out after the loss."""
        return sum(self.refused[int(self.lost_at_s) :])


def replicas_kept(demand: Demand, planned: int, target_utilisation: float) -> int:
    """Number of replicas that a region runs: the planned number, or the autoscaler's number if it is larger."""
    return max(planned, math.ceil(demand.tokens_per_s / (target_utilisation * demand.speed.full_tokens_per_s)))


def lose_region(demand: Demand, planned: int, loss: Loss) -> RegionLoss:
    """Simulates a surviving region. `demand` and `planned` are one region's load and replicas before the loss."""
    if loss.regions < 2:
        raise ValueError("the loss of a region needs at least two regions")
    more = replace(demand, rps=demand.rps * loss.regions / (loss.regions - 1))
    target_utilisation = AutoscalingConfig().target_utilisation
    before = replicas_kept(demand, planned, target_utilisation)
    most = max(before, loss.max_replicas or 4 * replicas_kept(more, planned, target_utilisation))
    until_s = loss.calm_s + loss.watched_s
    clock, ended = Clock(), list[FinishedRequest]()
    fleet = Fleet(before, demand.speed, ingresses_for(more), demand.costs, demand.timeout_s)
    cluster = SimulatedCluster(fleet, clock, ended.append, demand.seed)
    options = AutoscalingConfig(min_replicas=before, max_replicas=most)
    autoscaler = Autoscaler(options, demand.speed.full_tokens_per_s, loss.start_s)
    scaled = ScaledCluster(cluster, autoscaler, clock, loss.start_s, until_s)
    phases = [Phase(0.0, demand.rps), Phase(loss.calm_s + loss.failover_s, more.rps)]
    coming = arrivals(demand.mix, phases, demand.burstiness, demand.seed)
    cluster.send_all(takewhile(lambda arrival: arrival.at_s < until_s, coming))
    scaled.start()
    clock.run()
    return _outcome(demand, loss, ended, scaled.replicas, int(until_s))


def _outcome(
    demand: Demand, loss: Loss, ended: Sequence[FinishedRequest], replicas: Sequence[int], seconds: int
) -> RegionLoss:
    by_second: list[list[FinishedRequest]] = [[] for _ in range(seconds)]
    for one in ended:
        by_second[int(one.at_s)].append(one)
    refused = [sum(one.end is not End.ANSWERED for one in sent) for sent in by_second]
    p99_s = [_p99(by_second[max(0, at - _WINDOW_S + 1) : at + 1]) for at in range(seconds)]
    lost_at = int(loss.calm_s)
    bad = [at for at in range(lost_at, seconds) if refused[at] or p99_s[at] > demand.p99_s]
    ends_well = not bad or bad[-1] < seconds - _WINDOW_S
    return RegionLoss(
        lost_at_s=loss.calm_s,
        replicas_before=replicas[0],
        replicas_after=replicas[-1],
        replicas=list(replicas[:seconds]),
        p99_s=p99_s,
        refused=refused,
        unreachable=demand.rps * loss.failover_s,
        recovered_after_s=(float(bad[-1] + 1 - lost_at) if bad else 0.0) if ends_well else None,
    )


def _p99(seconds: Sequence[Sequence[FinishedRequest]]) -> float:
    latencies = [one.latency_s for ended in seconds for one in ended if one.end is End.ANSWERED]
    return percentile(latencies, 0.99) if latencies else 0.0
