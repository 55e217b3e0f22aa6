"""Discrete-event simulation of the service: ingresses, shards, replicas and deadlines.

`SimulatedCluster` can be scaled while it runs; its callers send the requests and evaluate the results. The simulation
omits failing processes, network limits, and exhausted CPUs other than those of ingresses and tokenisers.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from operator import attrgetter
from typing import NamedTuple

from rerank_service.config import LimitsConfig
from rerank_service.messages import ReplicaLoad
from rerank_service.replica.scheduler.admission import lateness
from rerank_service.replica.scheduler.fair_queue import TokensDue
from rerank_service.routing.ranker import even_slices
from rerank_service.routing.replica_table import MAX_DECLINED, ReplicaTable
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.costs import HAPROXY, StackCosts
from rerank_service.tools.planning.replica import SimulatedReplica, SimulatedShard
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Arrival, body_kb

__all__ = ["End", "FinishedRequest", "Fleet", "SimulatedCluster", "percentile", "run"]


class End(StrEnum):
    """Outcome of a request."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """Status 503: no replica could score the request in time."""
    TIMED_OUT = "timed out"
    """Status 504: the request did not finish within its time limit."""


class FinishedRequest(NamedTuple):
    """A request that has ended."""

    at_s: float
    """Time at which the client sent the request."""
    latency_s: float
    end: End
    lengths: Sequence[int]
    """Tokens of each pair."""

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Fleet:
    """A deployment to simulate."""

    replicas: int
    speed: ReplicaSpeed
    ingresses: int = 1
    costs: StackCosts = HAPROXY
    timeout_s: float = LimitsConfig().request_timeout_s
    slow_replicas: int = 0
    """Number of replicas that run at half the speed of the other replicas."""


class _SimulatedIngress:
    """An ingress process, which does one thing at a time and has its own table of replicas."""

    def __init__(self, clock: Clock) -> None:
        self.table = ReplicaTable(lambda: clock.now_s)
        self.num_open = 0
        self._clock = clock
        self._free_at_s = 0.0

    def work(self, cpu_s: float) -> float:
        """Adds work and returns the time at which this work is done."""
        self._free_at_s = max(self._free_at_s, self._clock.now_s) + cpu_s
        return self._free_at_s


class _ReplicaProcess:
    """A simulated replica with its tokenising threads."""

    def __init__(self, name: str, device: SimulatedReplica, num_threads: int) -> None:
        self.name = name
        self.device = device
        self.offered_tokens = 0
        self._free_at_s = [0.0] * num_threads

    def load(self, now_s: float) -> ReplicaLoad:
        """Load that the replica reports with each reply."""
        return ReplicaLoad(self.name, self.device.outstanding_tokens, self.device.drained_per_s, now_s)

    def tokenised_at(self, now_s: float, took_s: float) -> float:
        thread = min(range(len(self._free_at_s)), key=self._free_at_s.__getitem__)
        self._free_at_s[thread] = max(self._free_at_s[thread], now_s) + took_s
        return self._free_at_s[thread]


@dataclass(eq=False, slots=True)
class _SimulatedRequest:
    id: str
    arrival: Arrival
    ingress: _SimulatedIngress
    sent_at_s: float
    is_counted: bool
    on_refused: Callable[[float], None]
    num_tokens: int
    shards: dict[SimulatedShard, _ReplicaProcess] = field(default_factory=dict)  # shards without a reply
    end: End | None = None


class SimulatedCluster:
    """The service, from its proxy to the devices of one model."""

    def __init__(
        self,
        fleet: Fleet,
        clock: Clock,
        on_end: Callable[[FinishedRequest], None],
        seed: int = 0,
        beside: "SimulatedCluster | None" = None,
    ) -> None:
        """`beside` is another model of the same service; both models then have that model's ingresses."""
        self._fleet = fleet
        self._clock = clock
        self._on_end = on_end
        self._rng = random.Random(f"ties {seed}")  # noqa: S311 - a simulation
        self._name: str = f"{beside._name}+" if beside else ""  # the models' replicas share the ingresses' tables
        self._ingresses: list[_SimulatedIngress] = (
            beside._ingresses if beside else [_SimulatedIngress(clock) for _ in range(fleet.ingresses)]
        )
        self._all: list[_ReplicaProcess] = []
        self._routed: list[_ReplicaProcess] = []
        self._num_requests = 0
        self.num_sent = self.num_declined = 0
        for _ in range(fleet.replicas):
            self.add_replica()

    @property
    def num_replicas(self) -> int:
        """Number of replicas that receive requests."""
        return len(self._routed)

    @property
    def outstanding_tokens(self) -> int:
        """Tokens queued or being scored, on all replicas."""
        return sum(replica.device.outstanding_tokens for replica in self._all)

    @property
    def offered_tokens(self) -> int:
        """Tokens that replicas accepted or, for lack of capacity, refused; see `ModelScorer.offered_tokens`."""
        return sum(replica.offered_tokens for replica in self._all)

    @property
    def busy_s(self) -> float:
        """Busy time of all devices together."""
        return sum(replica.device.busy_s for replica in self._all)

    def add_replica(self) -> None:
        """Adds a replica that is ready immediately."""
        speed = self._fleet.speed
        if len(self._all) < self._fleet.slow_replicas:
            speed = replace(speed, tokens_per_s=speed.tokens_per_s / 2)
        device = SimulatedReplica(self._clock, speed, self._shard_done)
        name = f"{self._name}{len(self._all)}"
        replica = _ReplicaProcess(name, device, self._fleet.costs.num_tokeniser_threads)
        self._all.append(replica)
        self._routed.append(replica)

    def remove_replica(self) -> None:
        """Drains the newest replica: it receives no more requests and finishes its current requests."""
        self._routed.pop()

    def send(
        self,
        arrival: Arrival,
        is_counted: bool = False,
        on_refused: Callable[[float], None] = lambda _: None,
        sent_at_s: float | None = None,
    ) -> None:
        """Sends a client's request now.

        `is_counted` marks a retry with the id of a refused request: its tokens do not count as offered again.
        `on_refused` is called with the seconds in `Retry-After`. `sent_at_s` is the time from which deadline and
        latency are counted; null: now.
        """
        ingress = min(self._ingresses, key=lambda one: (one.num_open, self._rng.random()))  # HAProxy's `leastconn`
        ingress.num_open += 1
        self._num_requests += 1
        sent_at_s = self._clock.now_s if sent_at_s is None else sent_at_s
        request = _SimulatedRequest(
            str(self._num_requests), arrival, ingress, sent_at_s, is_counted, on_refused, sum(arrival.lengths)
        )
        self._clock.at(self._clock.now_s + self._fleet.costs.front_s, self._parse, request)
        if math.isfinite(self._fleet.timeout_s):
            self._clock.at(sent_at_s + self._fleet.timeout_s, self._give_up, request, End.TIMED_OUT)

    def send_all(self, requests: Iterator[Arrival]) -> None:
        """Sends each request at its time. The next request is drawn only then, so the requests may be endless."""
        if (arrival := next(requests, None)) is not None:
            self._clock.at(arrival.at_s, self.send, arrival)
            self._clock.at(arrival.at_s, self.send_all, requests)

    def _parse(self, request: _SimulatedRequest) -> None:
        slices = list(even_slices(request.arrival.lengths, self._fleet.speed.shard_tokens))
        kb = body_kb(len(request.arrival.lengths), request.num_tokens)
        cpu_s = self._fleet.costs.ingress.of(kb, len(slices))
        half_s = cpu_s / 2  # the other half is spent on the reply
        self._clock.at(request.ingress.work(half_s), self._fan_out, request, slices, half_s)

    def _fan_out(self, request: _SimulatedRequest, slices: Sequence[tuple[int, int]], cpu_back_s: float) -> None:
        if request.end is not None:
            return
        for start, stop in slices:
            shard = SimulatedShard(request.id, (request, cpu_back_s), request.arrival.lengths[start:stop])
            self._dispatch(shard, MAX_DECLINED)

    def _dispatch(self, shard: SimulatedShard, num_declinable: int) -> None:
        request: _SimulatedRequest = shard.owner[0]
        table = request.ingress.table
        chosen = table.best(self._routed, attrgetter("name"), shard.num_tokens, limit=1, tie_break=self._rng.random)[0]
        limit = table.decline_above(chosen.name, shard.num_tokens) if num_declinable and len(self._routed) > 1 else None
        table.send(id(shard), request.id, chosen.name, shard.num_tokens)
        request.shards[shard] = chosen
        self.num_sent += 1
        self._clock.at(self._clock.now_s + self._fleet.costs.hop_s, self._take_in, shard, chosen, limit, num_declinable)

    def _take_in(self, shard: SimulatedShard, replica: _ReplicaProcess, limit: int | None, num_declinable: int) -> None:
        now_s = self._clock.now_s
        load = replica.load(now_s)
        if limit is not None and load.waiting_tokens > limit:
            self.num_declined += 1
            self._clock.at(now_s + self._fleet.costs.hop_s, self._declined, shard, load, num_declinable - 1)
        else:
            took_s = shard.num_tokens / self._fleet.costs.tokenised_per_s
            self._clock.at(replica.tokenised_at(now_s, took_s), self._submit, shard, replica)

    def _declined(self, shard: SimulatedShard, load: ReplicaLoad, num_declinable: int) -> None:
        request: _SimulatedRequest = shard.owner[0]
        if request.end is None:
            request.ingress.table.complete(request.id, load.replica)
            request.ingress.table.add_report(load)
            self._dispatch(shard, num_declinable)

    def _submit(self, shard: SimulatedShard, replica: _ReplicaProcess) -> None:
        request: _SimulatedRequest = shard.owner[0]
        now_s, deadline_s = self._clock.now_s, request.sent_at_s + self._fleet.timeout_s
        own = TokensDue(deadline_s, shard.num_tokens)
        alone = lateness(own, (), 0, now_s, self._fleet.speed.full_tokens_per_s) is None
        is_refused = request.end is None and not replica.device.submit(shard, deadline_s)
        if not request.is_counted and (alone or not is_refused):
            replica.offered_tokens += shard.num_tokens
        if is_refused:
            retry_after_s = replica.device.retry_after_s
            self._clock.at(now_s + self._fleet.costs.hop_s, self._refuse, request, retry_after_s)

    def _shard_done(self, shard: SimulatedShard) -> None:
        request: _SimulatedRequest = shard.owner[0]
        if request.end is None:
            now_s = self._clock.now_s
            self._clock.at(now_s + self._fleet.costs.hop_s, self._gather, shard, request.shards[shard].load(now_s))

    def _gather(self, shard: SimulatedShard, load: ReplicaLoad) -> None:
        request, cpu_back_s = shard.owner
        if request.end is not None:
            return
        request.ingress.table.complete(request.id, request.shards.pop(shard).name)
        request.ingress.table.add_report(load)
        if not request.shards:
            self._clock.at(request.ingress.work(cpu_back_s) + self._fleet.costs.front_s, self._finish, request)

    def _finish(self, request: _SimulatedRequest) -> None:
        if request.end is None:
            self._close(request, End.ANSWERED)

    def _refuse(self, request: _SimulatedRequest, retry_after_s: float) -> None:
        if request.end is None:
            self._give_up(request, End.REFUSED)
            self._clock.at(self._clock.now_s + self._fleet.costs.front_s, request.on_refused, retry_after_s)

    def _give_up(self, request: _SimulatedRequest, end: End) -> None:
        if request.end is not None:
            return
        for shard, replica in request.shards.items():
            replica.device.discard(shard)
            request.ingress.table.complete(request.id, replica.name)
        self._close(request, end)

    def _close(self, request: _SimulatedRequest, end: End) -> None:
        request.end = end
        request.shards.clear()
        request.ingress.num_open -= 1
        now_s, at_s = self._clock.now_s, request.sent_at_s
        self._on_end(FinishedRequest(at_s, now_s - at_s, end, request.arrival.lengths))


def run(
    fleet: Fleet, requests: Iterable[Arrival], seed: int = 0, may_stop: Callable[[FinishedRequest], bool] | None = None
) -> list[FinishedRequest]:
    """Simulates the requests and returns them in the order of their ends. Stops early if `may_stop` returns true."""
    clock, ended = Clock(), list[FinishedRequest]()

    def on_end(one: FinishedRequest) -> None:
        ended.append(one)
        clock.is_stopped = may_stop is not None and may_stop(one)

    SimulatedCluster(fleet, clock, on_end, seed).send_all(iter(requests))
    clock.run()
    return ended


def percentile(latencies: Sequence[float], share: float) -> float:
    """Nearest-rank percentile; `share` is 0.99 for the p99. Infinite if there are no latencies."""
    if not latencies:
        return math.inf
    ordered = sorted(latencies)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
