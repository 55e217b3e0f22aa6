"""What the loss of a region does to the others: their share of the load comes to each, and replicas start meanwhile.

Regions are alike and know nothing of each other, so one survivor stands for all. What carries the clients over (DNS, a
global load balancer) is a delay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rerank_service.config import AutoscalingConfig
from rerank_service.tools.planning.autoscaler import Autoscaler
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.cluster import End, FinishedRequest, Fleet, SimulatedCluster, percentile
from rerank_service.tools.planning.fleet import Demand, ingresses_for, with_load
from rerank_service.tools.planning.scaled import ScaledCluster
from rerank_service.tools.planning.workload import Phase, arrivals

__all__ = ["Loss", "RegionLoss", "lose_region", "replicas_kept"]

_CALM_S = 30.0
_WINDOW_S = 5


@dataclass(frozen=True)
class Loss:
    """How it happens."""

    regions: int
    """Before."""
    start_s: float
    """Time a replica takes to start: node, image, weights, warm-up."""
    failover_s: float = 10.0
    """Until the lost region's clients come to the others; their requests fail meanwhile."""
    max_replicas: int | None = None
    """Of each region; null lets it have what it wants."""
    watched_s: float = 300.0
    """After the loss."""


@dataclass(frozen=True)
class RegionLoss:
    """One surviving region. Lists have one value a second; the loss is at `lost_at_s`."""

    lost_at_s: float
    replicas_before: int
    replicas_after: int
    replicas: list[int]
    p99_s: list[float]
    """Of the requests sent in the last five seconds, refused ones apart; 0 where none was answered."""
    refused: list[int]
    """Of the requests sent in this second: 503 or 504."""
    unreachable: float
    """Requests of the lost region that came before its clients were carried over, for all survivors together."""
    recovered_after_s: float | None
    """From the loss until p99 stays within the target and nothing is refused; 0 if it always does, null if never."""

    @property
    def worst_p99_s(self) -> float:
        """Of any five seconds after the loss."""
        return max(self.p99_s[int(self.lost_at_s) :])

    @property
    def num_refused(self) -> int:
        """In the surviving region, after the loss."""
        return sum(self.refused[int(self.lost_at_s) :])


def replicas_kept(demand: Demand, planned: int, target_utilisation: float) -> int:
    """What a region runs: those planned, or what its autoscaler would have."""
    return max(planned, math.ceil(demand.tokens_per_s / (target_utilisation * demand.speed.full_tokens_per_s)))


def lose_region(demand: Demand, planned: int, loss: Loss) -> RegionLoss:
    """`demand` and `planned` are one region's, before the loss."""
    if loss.regions < 2:
        raise ValueError("of one region none can be lost")
    more = with_load(demand, loss.regions / (loss.regions - 1))
    before = replicas_kept(demand, planned, AutoscalingConfig().target_utilisation)
    most = loss.max_replicas or 4 * replicas_kept(more, planned, AutoscalingConfig().target_utilisation)
    run = _SurvivorSimulation(demand, more, before, max(before, most), loss)
    run.play()
    return run.outcome()


class _SurvivorSimulation:
    """One survivor from before the loss to the end of what is watched."""

    def __init__(self, demand: Demand, more: Demand, before: int, most: int, loss: Loss) -> None:
        self._demand, self._loss = demand, loss
        self._lost_at_s = _CALM_S
        self._until_s = _CALM_S + loss.watched_s
        self._ended: list[FinishedRequest] = []
        self._clock = Clock()
        fleet = Fleet(before, demand.speed, ingresses_for(more), demand.costs, demand.timeout_s)
        self._cluster = SimulatedCluster(fleet, self._clock, self._ended.append, demand.seed)
        options = AutoscalingConfig(min_replicas=before, max_replicas=most)
        autoscaler = Autoscaler(options, demand.speed.full_tokens_per_s, loss.start_s)
        self._scaled = ScaledCluster(self._cluster, autoscaler, self._clock, loss.start_s, self._until_s)
        phases = [Phase(0.0, demand.rps), Phase(self._lost_at_s + loss.failover_s, more.rps)]
        self._coming = arrivals(demand.mix, phases, demand.burstiness, demand.seed)

    def play(self) -> None:
        self._send_next()
        self._scaled.start()
        self._clock.run()

    def _send_next(self) -> None:
        arrival = next(self._coming)
        if arrival.at_s < self._until_s:
            self._clock.at(arrival.at_s, self._cluster.send, arrival)
            self._clock.at(arrival.at_s, self._send_next)

    def outcome(self) -> RegionLoss:
        seconds, replicas = int(self._until_s), self._scaled.replicas
        by_second: list[list[FinishedRequest]] = [[] for _ in range(seconds)]
        for ended in self._ended:
            by_second[int(ended.at_s)].append(ended)
        refused = [sum(one.end is not End.ANSWERED for one in ended) for ended in by_second]
        p99_s = [_p99(by_second[max(0, at - _WINDOW_S + 1) : at + 1]) for at in range(seconds)]
        lost_at = int(self._lost_at_s)
        bad = [at for at in range(lost_at, seconds) if refused[at] or p99_s[at] > self._demand.p99_s]
        ends_well = not bad or bad[-1] < seconds - _WINDOW_S
        return RegionLoss(
            lost_at_s=self._lost_at_s,
            replicas_before=replicas[0],
            replicas_after=replicas[-1],
            replicas=replicas[:seconds],
            p99_s=p99_s,
            refused=refused,
            unreachable=self._demand.rps * self._loss.failover_s,
            recovered_after_s=(float(bad[-1] + 1 - lost_at) if bad else 0.0) if ends_well else None,
        )


def _p99(seconds: Sequence[Sequence[FinishedRequest]]) -> float:
    latencies = [one.latency_s for ended in seconds for one in ended if one.end is End.ANSWERED]
    return percentile(latencies, 0.99) if latencies else 0.0
