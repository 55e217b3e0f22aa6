"""Finds the smallest fleet whose p99 latency meets a target, by simulating fleets of different sizes."""

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from rerank_service.config import LimitsConfig
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.cluster import End, FinishedRequest, Fleet, SimulatedCluster, percentile
from rerank_service.tools.planning.costs import HAPROXY, StackCosts
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Mix, Phase, arrivals

__all__ = [
    "NUM_COARSE",
    "NUM_REQUESTS",
    "CannotMeet",
    "Demand",
    "FleetPlan",
    "Measured",
    "TooLarge",
    "check_size",
    "fewest_replicas",
    "first_enough",
    "ingresses_for",
    "measure",
    "plenty_for",
    "smallest",
    "watch",
]

_INGRESS_UTILISATION = 0.6
NUM_REQUESTS = 6_000
"""Number of requests in a simulation; sixty of them are slower than the p99."""
NUM_COARSE = 1_500
"""Number of requests in a first, shorter simulation."""
_NUM_TARGETS = 40
"""Minimum duration of a simulation, as a multiple of the target p99, because queues of large fleets build up slowly."""
_WARM_UP, _COOL_DOWN = 0.15, 0.05
"""Uncounted requests before and after the counted requests, as shares of the number of counted requests."""
_PLENTY = 4
"""Requests hardly wait in a fleet that has at least this many times the minimum number of replicas."""
_NORMAL_95 = 1.96
"""Half the width of a two-sided 95% interval, in standard deviations."""


_MOST_WORK = 5e7
"""Replicas times requests of a simulation that takes about two minutes; a search needs about ten simulations."""


class TooLarge(Exception):
    """The simulation would take hours: at least `replicas` are needed. A load of `rps` is small enough."""

    def __init__(self, replicas: int, rps: float) -> None:
        super().__init__(replicas, rps)
        self.replicas = replicas
        self.rps = rps


class CannotMeet(Exception):
    """No number of replicas meets the target. `p99_s` is the p99 of a fleet in which requests hardly wait."""

    def __init__(self, p99_s: float) -> None:
        super().__init__(p99_s)
        self.p99_s = p99_s


@dataclass(frozen=True)
class Demand:
    """A load, and the latency that the fleet must reach."""

    mix: Mix
    rps: float
    p99_s: float
    speed: ReplicaSpeed
    burstiness: float = 1.0
    """Squared coefficient of variation of the time between requests; 1 for a Poisson process."""
    costs: StackCosts = HAPROXY
    timeout_s: float = LimitsConfig().request_timeout_s
    seed: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Tokens that arrive per second."""
        return self.rps * self.mix.request_tokens

    @property
    def passages_per_hour(self) -> float:
        """Passages that arrive per hour."""
        return self.rps * self.mix.mean_passages * 3600

    @property
    def num_shards(self) -> int:
        """Number of shards of an average request."""
        return math.ceil(self.mix.request_tokens / self.speed.shard_tokens)

    @property
    def ingress_cpu_s(self) -> float:
        """CPU-seconds that an ingress spends on an average request."""
        return self.costs.ingress.of(self.mix.request_kb, self.num_shards)


@dataclass(frozen=True)
class Measured:
    """Simulated figures of a fleet. Refused and timed-out requests count as infinitely slow."""

    p50_s: float
    p99_s: float
    p99_low_s: float
    p99_high_s: float
    """Bounds of the 95% confidence interval of the p99, assuming independent latencies."""
    utilisation: float
    """Utilisation of the devices."""
    num_refused: int
    num_requests: int


@dataclass(frozen=True)
class FleetPlan:
    """The smallest sufficient fleet."""

    replicas: int
    ingresses: int
    measured: Measured
    fewest_replicas: int
    """Minimum number of replicas needed for the throughput alone, at any latency."""


def fewest_replicas(demand: Demand) -> int:
    """Minimum number of replicas for the arrival rate; with fewer replicas, the backlog grows without bound."""
    return max(1, math.ceil(demand.tokens_per_s / demand.speed.full_tokens_per_s))


def check_size(demand: Demand) -> None:
    """Raises `TooLarge` for a load whose simulation would take hours."""
    part = demand
    while fewest_replicas(part) * _num_counted(part, NUM_REQUESTS) > _MOST_WORK:
        part = replace(part, rps=part.rps / 2)
    if part is not demand:
        raise TooLarge(fewest_replicas(demand), part.rps)


def plenty_for(lowest: int) -> int:
    """Number of replicas in which requests hardly wait, if at least `lowest` are needed for the throughput."""
    return _PLENTY * lowest + _PLENTY


def ingresses_for(demand: Demand, cpu_s: float | None = None) -> int:
    """Smallest number of ingresses at which each ingress is busy at most 60% of the time.

    `cpu_s` is the CPU time of an ingress per request; null: the request's own.
    """
    return max(1, math.ceil(demand.rps * (demand.ingress_cpu_s if cpu_s is None else cpu_s) / _INGRESS_UTILISATION))


def smallest(demand: Demand, on_try: Callable[[int], None] = lambda replicas: None) -> FleetPlan:
    """Finds the smallest fleet that meets the target. Raises `CannotMeet` or `TooLarge`.

    With one replica fewer, the same simulated requests miss the target. `on_try` is called with the size of each fleet
    before its simulation.
    """
    check_size(demand)
    lowest = fewest_replicas(demand)

    @cache
    def tried(replicas: int, num_requests: int) -> Measured | None:
        on_try(replicas)
        return measure(demand, replicas, num_requests, may_miss=False)

    if tried(plenty_for(lowest), NUM_COARSE) is None:
        idle = measure(demand, plenty_for(lowest), NUM_COARSE)
        raise CannotMeet(idle.p99_s if idle else math.inf)
    about = first_enough(lambda replicas: tried(replicas, NUM_COARSE) is not None, lowest, math.ceil(lowest * 1.15))
    replicas = first_enough(lambda replicas: tried(replicas, NUM_REQUESTS) is not None, lowest, about)
    measured = tried(replicas, NUM_REQUESTS)
    assert measured is not None  # noqa: S101 - `first_enough` returned a size that meets the target
    return FleetPlan(replicas, ingresses_for(demand), measured, lowest)


def first_enough(is_enough: Callable[[int], bool], lowest: int, start: int) -> int:
    """Smallest number, at least `lowest`, for which `is_enough` is true. Searches from `start` in doubling steps, then
    by bisection."""
    step = 1
    if is_enough(start):
        enough = start
        while enough > lowest and is_enough(below := max(lowest, enough - step)):
            enough, step = below, 2 * step
        if enough == lowest:
            return lowest
        too_few = max(lowest, enough - step)
    else:
        too_few = start
        while not is_enough(enough := too_few + step):
            too_few, step = enough, 2 * step
    between = range(too_few + 1, enough)
    return too_few + 1 + bisect_left(between, True, key=is_enough)


def measure(demand: Demand, replicas: int, num_requests: int = NUM_REQUESTS, may_miss: bool = True) -> Measured | None:
    """Simulates one fleet. If `may_miss` is false, returns null as soon as the fleet is certain to miss the target."""
    fleet = Fleet(replicas, demand.speed, ingresses_for(demand), demand.costs, demand.timeout_s)
    return watch(
        demand, lambda clock, on_end: [SimulatedCluster(fleet, clock, on_end, demand.seed)], num_requests, may_miss
    )


def watch(
    demand: Demand,
    start: Callable[[Clock, Callable[[FinishedRequest], None]], Sequence[SimulatedCluster]],
    num_requests: int = NUM_REQUESTS,
    may_miss: bool = True,
) -> Measured | None:
    """Sends the requests of `demand` to the first of the clusters that `start` returns, and measures their ends.

    If `may_miss` is false, returns null as soon as the target is certain to be missed.
    """
    num_counted = _num_counted(demand, num_requests)
    first, last = math.ceil(num_counted * _WARM_UP), math.ceil(num_counted * (1 + _WARM_UP))
    coming = arrivals(demand.mix, [Phase(0.0, demand.rps)], demand.burstiness, demand.seed)
    requests = list(itertools.islice(coming, math.ceil(num_counted * (1 + _WARM_UP + _COOL_DOWN))))
    from_s, until_s = requests[first].at_s, requests[last - 1].at_s
    latencies: list[float] = []
    allowed = num_counted - math.ceil(0.99 * num_counted)
    num_missed = num_refused = 0
    clock = Clock()

    def on_end(ended: FinishedRequest) -> None:
        nonlocal num_missed, num_refused
        if not from_s <= ended.at_s <= until_s:
            return
        latency_s = ended.latency_s if ended.end is End.ANSWERED else math.inf
        latencies.append(latency_s)
        num_refused += ended.end is not End.ANSWERED
        num_missed += latency_s > demand.p99_s
        clock.is_stopped = len(latencies) == num_counted or (not may_miss and num_missed > allowed)

    clusters = start(clock, on_end)
    clusters[0].send_all(iter(requests))
    clock.run()
    if num_missed > allowed and not may_miss:
        return None
    busy_s, replicas = sum(one.busy_s for one in clusters), sum(one.num_replicas for one in clusters)
    return _summary(latencies, busy_s / (replicas * clock.now_s), num_refused)


def _num_counted(demand: Demand, num_requests: int) -> int:
    lasting = demand.rps * demand.p99_s * _NUM_TARGETS * num_requests / NUM_REQUESTS
    return max(num_requests, math.ceil(lasting))


def _summary(latencies: list[float], utilisation: float, num_refused: int) -> Measured:
    count = len(latencies)
    spread = _NORMAL_95 * math.sqrt(0.99 * 0.01 / count)
    p99_low_s, p99_high_s = (percentile(latencies, min(1.0, 0.99 + side * spread)) for side in (-1, 1))
    p50_s, p99_s = percentile(latencies, 0.5), percentile(latencies, 0.99)
    return Measured(p50_s, p99_s, p99_low_s, p99_high_s, utilisation, num_refused, count)
