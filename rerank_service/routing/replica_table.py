"""Chooses replicas by their load, recent failures and calls in flight, as far as this process knows them.

Thread-safe, because Serve's router has its own event loop and the model router runs in the ingress's loop. This module
does not import Ray: the simulator (`tools/planning/cluster.py`) runs the same code on a simulated clock.
"""

import heapq
import math
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from rerank_service.messages import ReplicaLoad, Shard

__all__ = ["MAX_DECLINED", "NUM_CHOICES", "OutstandingTokens", "ReplicaTable", "table_of"]

NUM_CHOICES = 3
"""Number of replicas offered to Serve for a shard. Serve needs alternatives, because the first replica may be full."""

MAX_DECLINED = 2
"""Number of times that replicas may hand back a shard. After that, the next replica must keep it."""

_ON_THE_WAY_S = 0.005
"""A call sent less than this time before a report was received is assumed to be missing from the report."""
_MEMORY_SHARDS = 4.0
"""Time constant of a report's exponential decay, as a multiple of the scoring time of a mean shard. Chosen by comparing
values with `benchmarks/routing.py`."""
_NEWEST_SHARE = 0.05
"""Weight of the newest shard in the moving averages of shard size and of the estimates' error."""
_ABOUT_EQUAL = 0.1
"""Replicas whose expected times differ by less than this share of the shard's own scoring time count as equal, and the
nearest one receives the shard."""
_DECLINE_SHARE, _DECLINE_SHARDS, _DECLINE_S = 0.1, 0.1, 0.005
"""A replica declines a shard if its backlog exceeds the estimate by more than the sum of three margins: a share of the
estimate, a share of the shard, and a time. Below that sum, sending the shard again costs more than it gains."""
_AVOIDED_S = 5.0
"""A failed replica receives no shard for this long. After that, it receives one shard at a time until it answers
one."""
_LONGEST_TRIAL_S = 10.0
"""A trial without an outcome ends after this long."""


class _Sent(NamedTuple):
    """A call that a replica has received and not answered yet."""

    request_id: str
    sent_at_s: float
    num_tokens: int


class OutstandingTokens:
    """Tokens of unanswered calls, by replica.

    A call counts from the moment a replica is chosen for it, before the replica accepts it. The shards of one request
    are routed within a millisecond of each other and would otherwise all choose the same replica.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_replica: defaultdict[Hashable, int] = defaultdict(int)
        self._claims: dict[int, tuple[Hashable, str, int]] = {}  # by call: replica, request id, tokens
        self._sent: defaultdict[Hashable, list[_Sent]] = defaultdict(list)

    def __getitem__(self, replica: Hashable) -> int:
        return self._by_replica[replica]

    def sent_before(self, replica: Hashable, at_s: float) -> int:
        """Tokens of unanswered calls that were sent up to `at_s`."""
        total = 0  # a loop takes half the time of `sum` here
        for _, sent_at_s, num_tokens in self._sent.get(replica, ()):
            if sent_at_s <= at_s:
                total += num_tokens
        return total

    def claim(self, call: int, request_id: str, replica: Hashable, num_tokens: int) -> None:
        """Counts a call on the replica chosen for it. A later claim of the same call replaces this claim."""
        self.release(call)
        self._claims[call] = (replica, request_id, num_tokens)
        self._by_replica[replica] += num_tokens

    def release(self, call: int) -> None:
        """Withdraws a call's claim; does nothing if the call has no claim or has been sent."""
        if (claim := self._claims.pop(call, None)) is not None:
            self._by_replica[claim[0]] -= claim[2]

    def replicas_of(self, request_id: str) -> Iterator[Hashable]:
        """Yields the replicas of the request's unanswered calls."""
        yield from (replica for replica, claimed, _ in self._claims.values() if claimed == request_id)
        yield from (
            replica for replica, sent in self._sent.items() if any(call.request_id == request_id for call in sent)
        )

    def send(self, call: int, request_id: str, replica: Hashable, num_tokens: int) -> None:
        """Counts a call on the replica that receives it, instead of the replica that was claimed."""
        self.release(call)
        self._sent[replica].append(_Sent(request_id, self._clock(), num_tokens))
        self._by_replica[replica] += num_tokens

    def complete(self, request_id: str, replica: Hashable) -> None:
        """Removes the request's oldest call on this replica, because all calls of a request share the request's id."""
        sent = self._sent.get(replica, [])
        for index, call in enumerate(sent):
            if call.request_id == request_id:
                self._by_replica[replica] -= sent.pop(index).num_tokens
                if not sent:
                    del self._sent[replica]
                return
        # The replica never accepted the call: only the call's claim is left.
        self.release(next((call for call, claim in self._claims.items() if claim[:2] == (replica, request_id)), 0))

    def keep_only(self, replicas: Collection[Hashable]) -> None:
        """Forgets all replicas that are not in `replicas`."""
        for known in (self._by_replica, self._sent):
            for replica in known.keys() - replicas:
                del known[replica]
        for call in [call for call, claim in self._claims.items() if claim[0] not in replicas]:
            del self._claims[call]


@dataclass(slots=True)
class _Report:
    """The newest report of a replica."""

    load: ReplicaLoad
    received_at_s: float


@dataclass(slots=True)
class _Failure:
    """A failed replica is avoided until `until_s`; after that, it receives one shard at a time as a trial."""

    until_s: float
    trial_since_s: float | None = None


_ReplicaT = TypeVar("_ReplicaT")


class ReplicaTable:
    """The replicas of one deployment, by Serve's id."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.RLock()
        self.count_running: Callable[[], int] | None = None
        """Number of running replicas known to Serve's router; null until there is a router."""
        self.outstanding = OutstandingTokens(clock)
        self._clock = clock
        self._reports: dict[str, _Report] = {}
        self._waiting_tokens = 0  # sum over all reports
        self._speeds: tuple[float, int] = (0.0, 0)  # sum and number of the known speeds
        self._shard_tokens = 0.0  # moving average
        self._real_share = 1.0  # moving average of actual divided by estimated tokens
        self._failures: dict[str, _Failure] = {}
        self._routes: dict[int, str] = {}  # by attempt
        self._numerics: defaultdict[str, dict[str, str]] = defaultdict(dict)  # by model and replica
        self._mixed: set[str] = set()  # models whose replicas differ in their numerics
        self._suspects: dict[int, str] = {}  # by attempt, for shards on which another replica has failed

    def add_report(self, load: ReplicaLoad) -> None:
        """Stores a replica's report, unless a newer report has already arrived."""
        with self.lock:
            report = self._reports.get(load.replica)
            if report is not None:
                if report.load.at_s > load.at_s:
                    return
                self._forget_report(load.replica)
            self._reports[load.replica] = _Report(load, self._clock())
            self._add_to_sums(load, 1)

    def add_size(self, estimated_tokens: int, num_tokens: int) -> None:
        """Updates the ratio of actual to estimated tokens with an answered shard. Reports count actual tokens, and for
        some languages the estimates are far off."""
        with self.lock:
            self._real_share += _NEWEST_SHARE * (num_tokens / max(1, estimated_tokens) - self._real_share)

    def keep_only(self, replicas: Collection[str]) -> None:
        """Forgets all replicas that are not in `replicas`."""
        with self.lock:
            self.outstanding.keep_only(replicas)
            for replica in self._reports.keys() - replicas:
                self._forget_report(replica)
            for replica in self._failures.keys() - replicas:
                del self._failures[replica]
            for model, known in self._numerics.items():
                for replica in known.keys() - replicas:
                    del known[replica]
                self._note_mixed(model)

    def _note_mixed(self, model: str) -> None:
        (self._mixed.add if len(set(self._numerics[model].values())) > 1 else self._mixed.discard)(model)

    def _forget_report(self, replica: str) -> None:
        self._add_to_sums(self._reports.pop(replica).load, -1)

    def _add_to_sums(self, load: ReplicaLoad, sign: int) -> None:
        self._waiting_tokens += sign * load.waiting_tokens
        total, count = self._speeds
        if load.tokens_per_s > 0:
            self._speeds = (total + sign * load.tokens_per_s, count + sign)

    @property
    def _mean_speed(self) -> float:
        """Mean tokens per second of a replica; 1 while no speed is known, so that replicas are compared by tokens."""
        total, count = self._speeds
        return total / count if count and total > 0 else 1.0

    def expected_tokens(self, replica: str) -> float:
        """Expected tokens ahead of a shard that is sent to this replica now.

        This is the sum of two parts: the tokens that this process has outstanding on the replica, and the other
        processes' tokens, which are the reported backlog without this process's part. As the report ages, the other
        processes' part approaches the mean backlog of all replicas. For a replica without a report, this part is the
        mean.
        """
        return self._forecast()(replica)[0]

    def _forecast(self) -> Callable[[str], tuple[float, float]]:
        """A replica's `expected_tokens` at this moment and its tokens per second. What all replicas have in common is
        computed once."""
        now_s, real_share, mean_speed = self._clock(), self._real_share, self._mean_speed
        mean = self._waiting_tokens / len(self._reports) if self._reports else 0.0
        memory_s = _MEMORY_SHARDS * self._shard_tokens / mean_speed

        def forecast(replica: str) -> tuple[float, float]:
            own = real_share * self.outstanding[replica]
            report = self._reports.get(replica)
            if report is None:
                return own + mean, mean_speed
            load, received_at_s = report.load, report.received_at_s
            others: float = load.waiting_tokens
            if others > 0:
                reported_own = real_share * self.outstanding.sent_before(replica, received_at_s - _ON_THE_WAY_S)
                others = max(0.0, others - reported_own)
            weight = math.exp((received_at_s - now_s) / memory_s) if memory_s > 0 else 1.0
            speed = load.tokens_per_s if load.tokens_per_s > 0 else mean_speed
            return own + weight * others + (1 - weight) * mean, speed

        return forecast

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
        """The replicas expected to finish a shard first, best first. Replicas with about equal times are ordered by
        distance, nearest first.

        Only replicas that can be among the returned ones are compared by distance. `tie_break` is called for every
        replica all the same, so that a simulation draws the same numbers however close the race is.
        """
        ties = [tie_break() for _ in replicas]
        with self.lock:
            forecasts, mean_speed = map(self._forecast(), map(id_of, replicas)), self._mean_speed
            tokens = self._real_share * num_tokens
            expected = [(before + tokens) / speed for before, speed in forecasts]
        fastest = heapq.nsmallest(limit, expected) or [0.0]
        equal_s = fastest[0] + _ABOUT_EQUAL * num_tokens / mean_speed
        longest_s = max(fastest[-1], equal_s)
        keys = (
            (max(took_s, equal_s), distance_of(replica), took_s, tie, index)
            for index, (took_s, replica, tie) in enumerate(zip(expected, replicas, ties, strict=True))
            if took_s <= longest_s
        )
        return [replicas[key[-1]] for key in heapq.nsmallest(limit, keys)]

    def usable(
        self,
        replicas: Sequence[_ReplicaT],
        id_of: Callable[[_ReplicaT], str],
        avoid: Collection[str] = (),
        shard: Shard | None = None,
        request_id: str = "",
    ) -> Sequence[_ReplicaT]:
        """The replicas except those in `avoid`, those that failed recently, and those whose numerics differ from the
        numerics of `shard` or of the replicas that score the request's other shards. An exclusion that would leave no
        replica is ignored.

        A shard that must avoid a replica either broke that replica or was on it when another shard broke it. Both
        shards are retried, on different replicas, so that the harmful shard does not break the harmless shard's second
        replica too.
        """
        if not avoid and not self._failures and not self._mixed:
            return replicas
        with self.lock:
            if shard is not None and shard.model in self._mixed:
                replicas = self._alike(replicas, id_of, shard, request_id) or replicas
            others = [replica for replica in replicas if id_of(replica) not in avoid] or replicas
            sound = [replica for replica in others if not self._is_avoided(id_of(replica))] or others
            if not avoid:
                return sound
            shared = set(self._suspects.values())
            return [replica for replica in sound if id_of(replica) not in shared] or sound

    def _alike(
        self, replicas: Sequence[_ReplicaT], id_of: Callable[[_ReplicaT], str], shard: Shard, request_id: str
    ) -> Sequence[_ReplicaT]:
        """The replicas with the numerics of the request, if they are known, or those with unknown numerics."""
        known = self._numerics[shard.model]
        found = (known.get(str(replica), "") for replica in self.outstanding.replicas_of(request_id))
        wanted = shard.numerics or next(filter(None, found), "")
        if not wanted:
            return replicas
        same = [replica for replica in replicas if known.get(id_of(replica)) == wanted]
        return same or [replica for replica in replicas if id_of(replica) not in known]

    def _is_avoided(self, replica: str) -> bool:
        failure = self._failures.get(replica)
        if failure is None:
            return False
        now_s, trial = self._clock(), failure.trial_since_s
        return now_s < failure.until_s or (trial is not None and now_s < trial + _LONGEST_TRIAL_S)

    def decline_above(self, replica: str, num_tokens: int) -> int | None:
        """Backlog in tokens above which the replica should hand the shard back; null while no speed is known."""
        with self.lock:
            if not self._speeds[1]:
                return None
            backlog = self.expected_tokens(replica)
            margin = _DECLINE_SHARE * backlog + _DECLINE_SHARDS * num_tokens + _DECLINE_S * self._mean_speed
            return round(backlog + margin)

    def claim(self, call: int, request_id: str, replica: str, num_tokens: int, suspect: int | None = None) -> None:
        """Counts a call on the replica chosen for it. If the replica has failed recently, the call is the replica's
        trial.

        `suspect` is the attempt of a shard on which another replica has failed.
        """
        with self.lock:
            if suspect is not None:
                self._suspects[suspect] = replica
            self.outstanding.claim(call, request_id, replica, num_tokens)
            if (failure := self._failures.get(replica)) is not None and not self._is_avoided(replica):
                failure.trial_since_s = self._clock()

    def release(self, call: int) -> None:
        """Withdraws the claim of a call that is not sent."""
        with self.lock:
            self.outstanding.release(call)

    def send(self, call: int, request_id: str, replica: str, num_tokens: int, attempt: int = 0) -> None:
        """Counts a call on the replica that receives it. `route_of` returns this replica for `attempt`, unless
        `attempt` is 0."""
        with self.lock:
            self.outstanding.send(call, request_id, replica, num_tokens)
            mean = self._shard_tokens or float(num_tokens)
            self._shard_tokens = mean + _NEWEST_SHARE * (num_tokens - mean)
            if attempt:
                self._routes[attempt] = replica
            if attempt in self._suspects:
                self._suspects[attempt] = replica

    def reject(self, attempt: int) -> None:
        """Records that the replica of an attempt did not accept it, so the attempt has no replica again."""
        self._routes.pop(attempt, None)

    def complete(self, request_id: str, replica: str) -> None:
        """Records that one of the request's calls to this replica has ended."""
        with self.lock:
            self.outstanding.complete(request_id, replica)

    def route_of(self, attempt: int) -> str | None:
        """The replica that an attempt was sent to; null if there is none, or if the replica did not accept it."""
        return self._routes.get(attempt)

    def end_attempt(self, attempt: int) -> str | None:
        """Forgets an attempt, and returns its replica, as `route_of` does."""
        self._suspects.pop(attempt, None)
        return self._routes.pop(attempt, None)

    def mark_failed(self, replica: str) -> None:
        """Records a failure: the replica is avoided for `_AVOIDED_S`."""
        with self.lock:
            self._failures[replica] = _Failure(self._clock() + _AVOIDED_S)

    def mark_answered(self, replica: str, model: str = "", numerics: str = "") -> None:
        """Records the numerics of an answer, and clears a replica's failure once it has answered a trial. Answers to
        calls sent before the failure do not count."""
        with self.lock:
            if numerics and self._numerics[model].get(replica) != numerics:
                self._numerics[model][replica] = numerics
                self._note_mixed(model)
            failure = self._failures.get(replica)
            if failure is not None and self._clock() >= failure.until_s:
                del self._failures[replica]

    def absolve(self, replica: str) -> None:
        """Undoes `mark_failed`, because the same pairs failed on another replica too."""
        with self.lock:
            self._failures.pop(replica, None)


_TABLES: dict[Hashable, ReplicaTable] = {}
_TABLES_LOCK = threading.Lock()


def table_of(deployment: Hashable) -> ReplicaTable:
    """The table of a deployment in this process, shared by Serve's router and the model router."""
    with _TABLES_LOCK:
        return _TABLES.setdefault(deployment, ReplicaTable())
