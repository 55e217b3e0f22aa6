"""What one process knows of a deployment's replicas: how long each would take, which just failed, which a shard is on.

Pure and thread-safe: Serve's router runs in a loop of its own, the model router in the ingress's. The simulator
(`planning.cluster`) runs the same code on its own clock.
"""

import heapq
import math
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from rerank_service.messages import ReplicaLoad

__all__ = ["MAX_DECLINED", "NUM_CHOICES", "OutstandingTokens", "ReplicaTable", "table_of"]

NUM_CHOICES = 3
"""Replicas that are offered for a shard: the first may be full."""

MAX_DECLINED = 2
"""Times a shard may be handed back; the next replica keeps it."""

_ON_THE_WAY_S = 0.005
"""A call sent this shortly before a report was heard is not counted in it yet."""
_MEMORY_SHARDS = 4.0
"""Time, in mean shards' scoring times, after which a report counts for 1/e; compared in benchmarks/routing.py."""
_NEWEST_SHARE = 0.05
"""Weight of the newest shard in the mean size."""
_ABOUT_EQUAL = 0.1
"""Share of the shard's own scoring time within which replicas are equally good, and the nearest gets it."""
_DECLINE_SHARE, _DECLINE_SHARDS, _DECLINE_S = 0.1, 0.1, 0.005
"""A replica declines when its backlog exceeds the estimate by this share of it, plus this share of the shard, plus this
time: below, sending the shard again costs more than it gains."""
_AVOIDED_S = 5.0
"""A replica that failed gets nothing for this long, then one shard at a time until it answers."""
_LONGEST_TRIAL_S = 10.0
"""A trial whose outcome nobody reported by then is over."""


class _Call(NamedTuple):
    request_id: str
    sent_at_s: float
    num_tokens: int


class OutstandingTokens:
    """Tokens sent to each replica and not yet answered.

    A call is claimed when a replica is chosen for it and not when the replica accepts it, so that the shards of one
    request, chosen one after the other within a millisecond, see each other.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_replica: defaultdict[Hashable, int] = defaultdict(int)
        self._claims: dict[int, tuple[Hashable, str, int]] = {}  # by call: replica, request id, tokens
        self._sent: defaultdict[Hashable, list[_Call]] = defaultdict(list)

    def __getitem__(self, replica: Hashable) -> int:
        return self._by_replica[replica]

    def sent_before(self, replica: Hashable, at_s: float) -> int:
        """Tokens not yet answered that were sent up to then."""
        return sum(call.num_tokens for call in self._sent.get(replica, ()) if call.sent_at_s <= at_s)

    def claim(self, call: int, request_id: str, replica: Hashable, num_tokens: int) -> None:
        """`call` will be sent to `replica`; a later claim of the same call replaces this one."""
        self.release(call)
        self._claims[call] = (replica, request_id, num_tokens)
        self._by_replica[replica] += num_tokens

    def release(self, call: int) -> None:
        """`call` will be sent nowhere; does nothing if it was never claimed, or has been sent."""
        if (claim := self._claims.pop(call, None)) is not None:
            self._by_replica[claim[0]] -= claim[2]

    def send(self, call: int, request_id: str, replica: Hashable, num_tokens: int) -> None:
        """`call` was sent to `replica`, whichever had been claimed."""
        self.release(call)
        self._sent[replica].append(_Call(request_id, self._clock(), num_tokens))
        self._by_replica[replica] += num_tokens

    def complete(self, request_id: str, replica: Hashable) -> None:
        """One call of the request is over on this replica. Calls of one request share their id: which, is not known."""
        sent = self._sent.get(replica, [])
        for index, call in enumerate(sent):
            if call.request_id == request_id:
                self._by_replica[replica] -= sent.pop(index).num_tokens
                if not sent:
                    del self._sent[replica]
                return
        # it never got there
        self.release(next((call for call, claim in self._claims.items() if claim[:2] == (replica, request_id)), 0))

    def keep_only(self, replicas: Collection[Hashable]) -> None:
        """Forgets replicas that are gone."""
        for known in (self._by_replica, self._sent):
            for replica in known.keys() - replicas:
                del known[replica]
        for call in [call for call, claim in self._claims.items() if claim[0] not in replicas]:
            del self._claims[call]


@dataclass(slots=True)
class _Known:
    """The last report of a replica."""

    load: ReplicaLoad
    heard_at_s: float


@dataclass(slots=True)
class _Failure:
    """A replica that failed: avoided until then, afterwards tried with one shard at a time."""

    until_s: float
    trial_since_s: float | None = None


_ReplicaT = TypeVar("_ReplicaT")


class ReplicaTable:
    """One deployment's replicas, by the id that Serve gives them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.RLock()
        self.count_running: Callable[[], int] | None = None
        """Running replicas that Serve's router knows; null before there is a router."""
        self.outstanding = OutstandingTokens(clock)
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._waiting_tokens = 0  # of all reports
        self._speeds: tuple[float, int] = (0.0, 0)  # sum, and how many are known
        self._shard_tokens = 0.0  # mean
        self._real_share = 1.0  # tokens for each that a sender estimates
        self._failures: dict[str, _Failure] = {}
        self._routes: dict[int, str] = {}  # by attempt

    def add_report(self, load: ReplicaLoad) -> None:
        """Takes a replica's report. An older one that arrives after a newer one is dropped."""
        with self.lock:
            known = self._known.get(load.replica)
            if known is not None:
                if known.load.at_s > load.at_s:
                    return
                self._forget_report(load.replica)
            self._known[load.replica] = _Known(load, self._clock())
            self._add_up(load, 1)

    def add_size(self, estimated_tokens: int, num_tokens: int) -> None:
        """Takes what an answered shard really had: estimates may be far off, as for CJK, and reports are not."""
        with self.lock:
            self._real_share += _NEWEST_SHARE * (num_tokens / max(1, estimated_tokens) - self._real_share)

    def keep_only(self, replicas: Collection[str]) -> None:
        """Forgets replicas that are gone."""
        with self.lock:
            self.outstanding.keep_only(replicas)
            for replica in self._known.keys() - replicas:
                self._forget_report(replica)
            for replica in self._failures.keys() - replicas:
                del self._failures[replica]

    def _forget_report(self, replica: str) -> None:
        self._add_up(self._known.pop(replica).load, -1)

    def _add_up(self, load: ReplicaLoad, sign: int) -> None:
        self._waiting_tokens += sign * load.waiting_tokens
        total, count = self._speeds
        if load.tokens_per_s > 0:
            self._speeds = (total + sign * load.tokens_per_s, count + sign)

    @property
    def _mean_speed(self) -> float:
        """Tokens a second of a replica; 1 while no replica has told its speed, so that tokens are compared."""
        total, count = self._speeds
        return total / count if count and total > 0 else 1.0

    def expected_tokens(self, replica: str) -> float:
        """Tokens in front of a shard that were sent there now.

        What this process has sent and not got back, and what others have: the backlog last reported, less this
        process's part of it. As the report ages, others' part approaches the mean over all replicas; a replica that
        has reported nothing has the mean.
        """
        own = self._real_share * self.outstanding[replica]
        mean = self._waiting_tokens / len(self._known) if self._known else 0.0
        known = self._known.get(replica)
        if known is None:
            return own + mean
        reported = known.load.waiting_tokens
        mine = self._real_share * self.outstanding.sent_before(replica, known.heard_at_s - _ON_THE_WAY_S)
        others = max(0.0, reported - mine)
        age_s, memory_s = self._clock() - known.heard_at_s, _MEMORY_SHARDS * self._shard_tokens / self._mean_speed
        weight = math.exp(-age_s / memory_s) if memory_s > 0 else 1.0
        return own + weight * others + (1 - weight) * mean

    def _expected_s(self, replica: str, num_tokens: int) -> float:
        known = self._known.get(replica)
        speed = known.load.tokens_per_s if known is not None and known.load.tokens_per_s > 0 else self._mean_speed
        return (self.expected_tokens(replica) + self._real_share * num_tokens) / speed

    def best(
        self,
        replicas: Sequence[_ReplicaT],
        id_of: Callable[[_ReplicaT], str],
        num_tokens: int,
        *,
        limit: int = NUM_CHOICES,
        distance_of: Callable[[_ReplicaT], int] = lambda replica: 0,
        tie_break: Callable[[], float] = random.random,
    ) -> list[_ReplicaT]:
        """The replicas expected to finish a shard first, best first; of those about equal, the nearest.

        Not sorted all: over 1,000 replicas that takes twice the time (docs/capacity.md).
        """
        with self.lock:
            expected = [self._expected_s(id_of(replica), num_tokens) for replica in replicas]
            equal_s = min(expected, default=0.0) + _ABOUT_EQUAL * num_tokens / self._mean_speed
        keys = (
            (max(took_s, equal_s), distance_of(replica), took_s, tie_break(), index)
            for index, (took_s, replica) in enumerate(zip(expected, replicas, strict=True))
        )
        return [replicas[key[-1]] for key in heapq.nsmallest(limit, keys)]

    def usable(
        self, replicas: Sequence[_ReplicaT], id_of: Callable[[_ReplicaT], str], avoid: Collection[str] = ()
    ) -> Sequence[_ReplicaT]:
        """The replicas without those in `avoid` and those that just failed, unless no other is left."""
        if not avoid and not self._failures:
            return replicas
        with self.lock:
            others = [replica for replica in replicas if id_of(replica) not in avoid] or replicas
            return [replica for replica in others if not self._is_avoided(id_of(replica))] or others

    def _is_avoided(self, replica: str) -> bool:
        failure = self._failures.get(replica)
        if failure is None:
            return False
        now_s, trial = self._clock(), failure.trial_since_s
        return now_s < failure.until_s or (trial is not None and now_s < trial + _LONGEST_TRIAL_S)

    def decline_above(self, replica: str, num_tokens: int) -> int | None:
        """Backlog above which the replica should hand the shard back; null while no replica has told its speed."""
        with self.lock:
            if not self._speeds[1]:
                return None
            backlog = self.expected_tokens(replica)
            margin = _DECLINE_SHARE * backlog + _DECLINE_SHARDS * num_tokens + _DECLINE_S * self._mean_speed
            return round(backlog + margin)

    def claim(self, call: int, request_id: str, replica: str, num_tokens: int) -> None:
        """A call will be sent to this replica; if it had failed, this is its trial."""
        with self.lock:
            self.outstanding.claim(call, request_id, replica, num_tokens)
            if (failure := self._failures.get(replica)) is not None and not self._is_avoided(replica):
                failure.trial_since_s = self._clock()

    def release(self, call: int) -> None:
        """A call will be sent nowhere."""
        with self.lock:
            self.outstanding.release(call)

    def send(self, call: int, request_id: str, replica: str, num_tokens: int, attempt: int = 0) -> None:
        """A call was sent to this replica. An attempt other than 0 can be asked for with `route_of`."""
        with self.lock:
            self.outstanding.send(call, request_id, replica, num_tokens)
            mean = self._shard_tokens or float(num_tokens)
            self._shard_tokens = mean + _NEWEST_SHARE * (num_tokens - mean)
            if attempt:
                self._routes[attempt] = replica

    def complete(self, request_id: str, replica: str) -> None:
        """A call of the request is over on this replica."""
        with self.lock:
            self.outstanding.complete(request_id, replica)

    def route_of(self, attempt: int) -> str | None:
        """The replica an attempt was sent to; null if it was sent nowhere."""
        return self._routes.get(attempt)

    def end_attempt(self, attempt: int) -> None:
        """Nobody will ask for its route any more."""
        self._routes.pop(attempt, None)

    def mark_failed(self, replica: str) -> None:
        """Avoids a replica for some seconds."""
        with self.lock:
            self._failures[replica] = _Failure(self._clock() + _AVOIDED_S)

    def mark_answered(self, replica: str) -> None:
        """A replica has scored something: if that was its trial, it is used again."""
        with self.lock:
            failure = self._failures.get(replica)
            if failure is not None and self._clock() >= failure.until_s:
                del self._failures[replica]

    def absolve(self, replica: str) -> None:
        """The failure followed the pairs to another replica."""
        with self.lock:
            self._failures.pop(replica, None)


_TABLES: dict[Hashable, ReplicaTable] = {}
_TABLES_LOCK = threading.Lock()


def table_of(deployment: Hashable) -> ReplicaTable:
    """The table of a deployment in this process: Serve's router writes to it, and so does the model router."""
    with _TABLES_LOCK:
        return _TABLES.setdefault(deployment, ReplicaTable())
