"""Queue of all callers' pairs. Batches are drawn with a token budget that the callers share fairly.

Start-time fair queueing (Goyal, Vin, Cheng 1996) on two levels: the next pair belongs to the caller with the fewest
tokens served, and to the request with the fewest tokens served among that caller's requests. New callers and new
requests start level with the least served caller or request. A request of 10 passages therefore shares the next batch
with a request of 512 passages, however long the larger request has been queued, and a caller with one request has the
same share as a caller with two hundred requests.

Requests close to their deadlines are the exception: they are drawn first, in the order of deadlines, whichever caller
sent them. Half of a batch with urgent requests is still reserved for callers with a small backlog, and `admission`
keeps time free for active callers so that urgent requests are rare. The module uses no clock, thread or engine.
"""

import heapq
import math
from collections import deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

__all__ = ["PROTECTED", "Drawn", "FairQueue", "TokensDue", "urgent"]

JobT = TypeVar("JobT", bound=Hashable)
DueT = TypeVar("DueT", bound="TokensDue")

PROTECTED = 0.9
"""Share of the time to its deadline within which a request must be done. A request that would take longer is urgent."""

_MAX_MISFITS = 8
"""Maximum number of requests skipped in the search for a pair that still fits. Searching further takes time and
adds little to the batch."""

_QUIET_SHARE = 0.03
"""A caller whose backlog is below this part of an equal share of the queue is served before urgent requests. A higher
value delays urgent requests; a lower value delays small callers (benchmarks/callers.py)."""


class Drawn(NamedTuple, Generic[JobT]):
    """One pair of a batch."""

    job: JobT
    position: int
    """Position of the pair in its job."""
    num_tokens: int


@dataclass(eq=False, slots=True)
class TokensDue:
    """Tokens that must be scored before a deadline."""

    deadline_s: float
    """Deadline on the clock of the code that fills the queue; infinite if there is no deadline."""
    num_tokens: int


@dataclass(eq=False, slots=True)
class _Request(TokensDue, Generic[JobT]):
    """The queued pairs of one request, with one job per shard of the request that this replica received."""

    request_id: str
    caller: "_Caller[JobT]"
    served_tokens: int
    pairs: deque[Drawn[JobT]] = field(default_factory=deque)


@dataclass(eq=False, slots=True)
class _Caller(Generic[JobT]):
    """The queued requests of one caller."""

    name: str
    served_tokens: int
    requests: dict[str, _Request[JobT]] = field(default_factory=dict)
    heap: list[tuple[int, int, _Request[JobT]]] = field(default_factory=list)  # served tokens, arrival, request
    virtual_tokens: int = 0  # served tokens of the least served request, at the last draw from it


@dataclass(eq=False, slots=True)
class _Batch(Generic[JobT]):
    """A batch that is being filled."""

    room: int
    """Tokens left in the budget."""
    drawn: list[Drawn[JobT]] = field(default_factory=list)
    misfits: list[_Request[JobT]] = field(default_factory=list)
    """Requests skipped because their next pair is longer than `room`."""


class FairQueue(Generic[JobT]):
    """Holds the pairs of jobs. A job is one shard. A job is added as a list of the token counts of its pairs."""

    def __init__(self) -> None:
        self._requests: dict[str, _Request[JobT]] = {}
        self._callers: dict[str, _Caller[JobT]] = {}
        self._heap: list[tuple[int, int, _Caller[JobT]]] = []  # served tokens, arrival, caller: one entry per caller
        self._arrivals = count()
        self._virtual_tokens = 0  # served tokens of the least served caller, at the last draw from it
        self.backlogs: dict[str, int] = {}
        """Queued tokens of each caller."""
        self.num_tokens = 0
        self.num_pairs = 0

    def __bool__(self) -> bool:
        return self.num_pairs > 0

    @property
    def requests(self) -> Collection[TokensDue]:
        """Queued tokens of each request, with its deadline."""
        return self._requests.values()

    def add(
        self, request_id: str, job: JobT, lengths: Sequence[int], deadline_s: float = math.inf, caller: str = ""
    ) -> None:
        """Queues a job's pairs behind earlier pairs of the same request.

        The first job of a request sets the request's caller and deadline. The deadline may be on any clock.
        """
        if not lengths:
            return
        request = self._requests.get(request_id)
        if request is None:
            owner = self._callers.get(caller)
            if owner is None:
                owner = self._callers[caller] = _Caller(caller, self._virtual_tokens)
                self.backlogs[caller] = 0
                heapq.heappush(self._heap, (owner.served_tokens, next(self._arrivals), owner))
            request = _Request(deadline_s, 0, request_id, owner, owner.virtual_tokens)
            self._requests[request_id] = owner.requests[request_id] = request
            heapq.heappush(owner.heap, (request.served_tokens, next(self._arrivals), request))
        for position, length in enumerate(lengths):
            request.pairs.append(Drawn(job, position, length))
        num_tokens = sum(lengths)
        request.num_tokens += num_tokens
        self.backlogs[request.caller.name] += num_tokens
        self.num_tokens += num_tokens
        self.num_pairs += len(lengths)

    def discard(self, request_id: str, job: JobT) -> int:
        """Drops a job's queued pairs and returns their number."""
        request = self._requests.get(request_id)
        if request is None:
            return 0
        kept: deque[Drawn[JobT]] = deque()
        num_tokens = 0
        for pair in request.pairs:
            if pair.job == job:
                num_tokens += pair.num_tokens
            else:
                kept.append(pair)
        num_pairs = len(request.pairs) - len(kept)
        request.pairs = kept
        self._subtract(request, num_pairs, num_tokens)
        return num_pairs

    def take(self, max_tokens: int, now_s: float = 0.0, tokens_per_s: float | None = None) -> list[Drawn[JobT]]:
        """Draws the next batch: at most `max_tokens`, unless a single pair is longer than that.

        `now_s` is the time at which the batch can start, on the clock of the deadlines. Together with the device's
        speed, it decides which requests are urgent; while the speed is unknown, no request is urgent.
        """
        if self.num_tokens <= max_tokens:  # the whole queue is the batch, whoever comes first
            drawn = list(chain.from_iterable(map(attrgetter("pairs"), self._requests.values())))
            for entries in (self._requests, self._callers, self._heap, self.backlogs):
                entries.clear()
            self.num_tokens = self.num_pairs = 0
            return drawn
        batch: _Batch[JobT] = _Batch(max_tokens)
        is_blocked = False
        if tokens_per_s:
            by_deadline = sorted(self._requests.values(), key=attrgetter("deadline_s"))
            first = urgent(by_deadline, max_tokens, now_s, tokens_per_s)
            if first:
                self._draw_quiet(batch)
            for request in first:
                while request.pairs and (not batch.drawn or request.pairs[0].num_tokens <= batch.room):
                    self._draw(batch, request)
                if request.pairs:  # filling the batch with other pairs instead would make large requests late
                    is_blocked = True
                    break
        if not is_blocked:
            self._draw_fairly(batch)
        for request in batch.misfits:
            heapq.heappush(request.caller.heap, (request.served_tokens, next(self._arrivals), request))
        return batch.drawn

    def _draw_quiet(self, batch: _Batch[JobT]) -> None:
        """Draws from callers with a small backlog until half of the batch is filled.

        Because half of the batch is reserved for these callers, urgent requests of another caller at most double these
        callers' wait.
        """
        reserved = batch.room // 2
        most_tokens = self.num_tokens * _QUIET_SHARE / len(self._callers)
        quiet = [caller for name, caller in self._callers.items() if self.backlogs[name] <= most_tokens]
        while quiet and batch.room > reserved:
            caller = min(quiet, key=attrgetter("served_tokens"))
            request = self._next_of(batch, caller)
            if request is not None:
                self._draw(batch, request)
            if request is None or not caller.requests:
                quiet.remove(caller)

    def _draw_fairly(self, batch: _Batch[JobT]) -> None:
        """Draws from the least served caller until no further pair fits."""
        skipped: list[_Caller[JobT]] = []
        while self._heap and len(batch.misfits) + len(skipped) < _MAX_MISFITS:
            served_tokens, _, caller = heapq.heappop(self._heap)
            if self._callers.get(caller.name) is not caller:  # the caller's last request has left the queue
                continue
            if served_tokens == caller.served_tokens:  # otherwise the entry predates the caller's last draw
                request = self._next_of(batch, caller)
                if request is None:
                    skipped.append(caller)
                    continue
                if not skipped:
                    self._virtual_tokens = caller.served_tokens
                self._draw(batch, request)
                if not caller.requests:
                    continue
            heapq.heappush(self._heap, (caller.served_tokens, next(self._arrivals), caller))
        for caller in skipped:
            heapq.heappush(self._heap, (caller.served_tokens, next(self._arrivals), caller))

    def _next_of(self, batch: _Batch[JobT], caller: _Caller[JobT]) -> _Request[JobT] | None:
        """The least served request of a caller among the requests whose next pair fits; null if no pair fits."""
        while caller.heap and len(batch.misfits) < _MAX_MISFITS:
            served_tokens, _, request = caller.heap[0]
            if caller.requests.get(request.request_id) is not request:  # the request has left the queue
                heapq.heappop(caller.heap)
            elif served_tokens != request.served_tokens:  # the entry predates the request's last draw
                heapq.heapreplace(caller.heap, (request.served_tokens, next(self._arrivals), request))
            elif batch.drawn and request.pairs[0].num_tokens > batch.room:
                heapq.heappop(caller.heap)
                batch.misfits.append(request)
            else:
                if not batch.misfits:
                    caller.virtual_tokens = request.served_tokens
                return request
        return None

    def _draw(self, batch: _Batch[JobT], request: _Request[JobT]) -> None:
        """Moves the next pair of a request into the batch. Heap entries become stale and are renewed when popped."""
        drawn = request.pairs.popleft()
        batch.drawn.append(drawn)
        batch.room -= drawn.num_tokens
        request.served_tokens += drawn.num_tokens
        request.caller.served_tokens += drawn.num_tokens
        self._subtract(request, 1, drawn.num_tokens)

    def _subtract(self, request: _Request[JobT], num_pairs: int, num_tokens: int) -> None:
        """Subtracts pairs that have left the queue. Forgets the request after its last pair, and the caller after its
        last request."""
        caller = request.caller
        request.num_tokens -= num_tokens
        self.backlogs[caller.name] -= num_tokens
        self.num_tokens -= num_tokens
        self.num_pairs -= num_pairs
        if not request.pairs:
            del self._requests[request.request_id], caller.requests[request.request_id]
            if not caller.requests:
                del self._callers[caller.name], self.backlogs[caller.name]


def urgent(by_deadline: Sequence[DueT], batch_tokens: int, now_s: float, tokens_per_s: float) -> list[DueT]:
    """Returns the requests to draw first, in the order of their deadlines; usually none. `by_deadline` is sorted, with
    the earliest deadline first.

    Earliest deadline first is optimal on one device (Liu and Layland, 1973): if this order misses a deadline, every
    order does. A request that is not urgent waits for one batch of `batch_tokens` and finishes with its own last batch.
    If some deadlines can no longer be met, the longest requests are given up to save the other requests (Moore, 1968),
    and are scored in the remaining time.
    """
    kept: list[DueT] = []
    batch_s = batch_tokens / tokens_per_s
    done_s = 0.0
    num_urgent = 0
    for request in by_deadline:
        kept.append(request)
        done_s += request.num_tokens / tokens_per_s
        time_s = request.deadline_s - now_s
        if done_s > time_s:
            given_up = max(kept, key=attrgetter("num_tokens"))
            kept.remove(given_up)
            done_s -= given_up.num_tokens / tokens_per_s
            num_urgent = len(kept)
        elif done_s + 2 * batch_s > PROTECTED * time_s:
            num_urgent = len(kept)
    return kept[:num_urgent]
