"""Plans a cascade: how many replicas each stage needs, so that the whole request meets its target.

Each stage is simulated as a model of its own; a request enters the next stage with the passages that it keeps, on the
same ingresses and with the time that is left. The simulation keeps any passages: their lengths do not depend on their
rank.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from rerank_service.config import AutoscalingConfig
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.cluster import End, FinishedRequest, Fleet, SimulatedCluster
from rerank_service.tools.planning.fleet import (
    NUM_COARSE,
    NUM_REQUESTS,
    CannotMeet,
    Demand,
    FleetPlan,
    Measured,
    check_size,
    fewest_replicas,
    first_enough,
    ingresses_for,
    plenty_for,
    smallest,
    watch,
)
from rerank_service.tools.planning.limits import Cadence, controller_cpus
from rerank_service.tools.planning.region import replicas_kept
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Arrival, Mix

__all__ = ["CascadePlan", "Stage", "StagePlan", "measure_cascade", "num_kept", "plan_cascade", "stage_demands"]

Keep = int | float
"""A number of passages, or, below 1, a share of the stage's passages."""


@dataclass(frozen=True)
class Stage:
    """One stage of a cascade."""

    model: str
    speed: ReplicaSpeed
    keep: Keep | None = None
    """Passages that go on to the next stage; null in the last stage."""


@dataclass(frozen=True)
class StagePlan:
    """The replicas of one stage."""

    stage: Stage
    replicas: int
    kept_replicas: int
    """Replicas that the autoscaler keeps running for its `target_utilisation`, at least the planned number."""
    fewest_replicas: int
    """Minimum number of replicas for the throughput alone, at any latency."""
    mean_passages: float
    """Passages of a request that the stage scores, on average."""


@dataclass(frozen=True)
class CascadePlan:
    """The smallest sufficient fleet of a cascade."""

    demand: Demand
    """The load of the first stage, which is the load of the clients."""
    stages: tuple[StagePlan, ...]
    replicas: int
    """Replicas of all stages together."""
    ingresses: int
    measured: Measured
    controller_cpus: float
    """Busy cores of Serve's controller, which can use at most one core."""
    alone: FleetPlan | None
    """The last stage's model without the cascade, at the same load; null if no number of replicas meets the target."""
    cost_per_million_passages: float | None
    """Cost in the currency of the price; null if no price is given."""


def num_kept(keep: Keep, num_passages: int) -> int:
    """Number of passages that go on; a share is rounded up, as in the service."""
    return min(num_passages, keep if isinstance(keep, int) else math.ceil(keep * num_passages))


def stage_demands(demand: Demand, stages: Sequence[Stage]) -> list[Demand]:
    """The load of each stage. Later stages score fewer passages, and have no proxy and no constant cost of a request:
    both belong to the first stage."""
    costs = demand.costs
    inner = replace(costs, front_s=0.0, ingress=replace(costs.ingress, request_s=0.0))
    demands = [replace(demand, speed=stages[0].speed)]
    for before, stage in itertools.pairwise(stages):
        assert before.keep is not None  # noqa: S101 - only the last stage keeps nothing
        mix = _kept_mix(demands[-1].mix, before.keep)
        demands.append(replace(demand, mix=mix, speed=stage.speed, costs=inner))
    return demands


def _kept_mix(mix: Mix, keep: Keep) -> Mix:
    sizes: dict[int, float] = {}
    for size, weight in mix.passages.items():
        kept = num_kept(keep, size)
        sizes[kept] = sizes.get(kept, 0.0) + weight
    return replace(mix, passages=sizes)


def measure_cascade(
    demands: Sequence[Demand],
    stages: Sequence[Stage],
    replicas: Sequence[int],
    num_requests: int = NUM_REQUESTS,
    may_miss: bool = True,
) -> Measured | None:
    """Simulates the cascade. If `may_miss` is false, returns null as soon as the target is certain to be missed."""
    ingresses = _ingresses(demands)

    def start(clock: Clock, on_end: Callable[[FinishedRequest], None]) -> list[SimulatedCluster]:
        clusters: list[SimulatedCluster] = []
        for place, (demand, count) in enumerate(zip(demands, replicas, strict=True)):
            fleet = Fleet(count, demand.speed, ingresses, demand.costs, demand.timeout_s)
            keep = stages[place].keep
            ended = on_end if keep is None else partial(_enter_next, clusters, place + 1, keep, clock, on_end)
            clusters.append(SimulatedCluster(fleet, clock, ended, demand.seed, clusters[-1] if clusters else None))
        return clusters

    return watch(demands[0], start, num_requests, may_miss)


def _enter_next(
    clusters: Sequence[SimulatedCluster],
    place: int,
    keep: Keep,
    clock: Clock,
    on_end: Callable[[FinishedRequest], None],
    ended: FinishedRequest,
) -> None:
    if ended.end is not End.ANSWERED:
        on_end(ended)
        return
    kept = ended.lengths[: num_kept(keep, len(ended.lengths))]
    clusters[place].send(Arrival(clock.now_s, kept), sent_at_s=ended.at_s)


def plan_cascade(
    demand: Demand,
    stages: Sequence[Stage],
    price_per_gpu_hour: float | None = None,
    on_try: Callable[[int], None] = lambda replicas: None,
) -> CascadePlan:
    """Finds the fewest replicas of all stages together that meet the target. Raises `CannotMeet` or `TooLarge`.

    With one replica fewer in total, no division between the stages meets the target. `on_try` is called with the total
    before each simulation.
    """
    demands = stage_demands(demand, stages)
    for one in demands:
        check_size(one)
    lowest = [fewest_replicas(one) for one in demands]

    @cache
    def tried(replicas: tuple[int, ...], num_requests: int) -> Measured | None:
        on_try(sum(replicas))
        return measure_cascade(demands, stages, replicas, num_requests, may_miss=False)

    plenty = tuple(map(plenty_for, lowest))
    if tried(plenty, NUM_COARSE) is None:
        idle = measure_cascade(demands, stages, plenty, NUM_COARSE)
        raise CannotMeet(idle.p99_s if idle else math.inf)
    least = [_fewest_of_stage(place, plenty, lowest, tried) for place in range(len(stages))]
    replicas, measured = next(
        (replicas, measured)
        for replicas in _divisions(least)
        if tried(replicas, NUM_COARSE) and (measured := tried(replicas, NUM_REQUESTS))
    )
    total = sum(replicas)
    cost = None if price_per_gpu_hour is None else total * price_per_gpu_hour / demand.passages_per_hour * 1e6
    return CascadePlan(
        demands[0],
        tuple(map(_stage_plan, stages, demands, replicas)),
        total,
        _ingresses(demands),
        measured,
        controller_cpus(total, _ingresses(demands), Cadence()),
        _alone(replace(demand, speed=stages[-1].speed), on_try),
        cost,
    )


def _fewest_of_stage(
    place: int,
    plenty: Sequence[int],
    lowest: Sequence[int],
    tried: Callable[[tuple[int, ...], int], Measured | None],
) -> int:
    """Fewest replicas of one stage while requests hardly wait in the others: no plan has fewer."""

    def is_enough(count: int) -> bool:
        return tried((*plenty[:place], count, *plenty[place + 1 :]), NUM_COARSE) is not None

    return first_enough(is_enough, lowest[place], math.ceil(lowest[place] * 1.15))


def _divisions(least: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Numbers of replicas of at least `least`, by their sum; endless."""
    for spare in itertools.count():
        for bars in itertools.combinations(range(spare + len(least) - 1), len(least) - 1):
            edges = (-1, *bars, spare + len(least) - 1)
            yield tuple(
                low + right - left - 1 for low, (left, right) in zip(least, itertools.pairwise(edges), strict=True)
            )


def _stage_plan(stage: Stage, demand: Demand, replicas: int) -> StagePlan:
    kept = replicas_kept(demand, replicas, AutoscalingConfig().target_utilisation)
    return StagePlan(stage, replicas, kept, fewest_replicas(demand), demand.mix.mean_passages)


def _ingresses(demands: Sequence[Demand]) -> int:
    return ingresses_for(demands[0], sum(one.ingress_cpu_s for one in demands))


def _alone(demand: Demand, on_try: Callable[[int], None]) -> FleetPlan | None:
    try:
        return smallest(demand, on_try)
    except CannotMeet:
        return None
