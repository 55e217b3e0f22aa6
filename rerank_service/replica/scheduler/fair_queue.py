"""Pending pairs of several callers' requests, drawn in batches of a token budget that they share fairly.

Start-time fair queueing (Goyal, Vin, Cheng 1996) on two levels: the caller served the fewest tokens so far goes next,
and of its requests the one served the fewest; a new one starts level with the least served. A 10-passage request
therefore shares the next batch with a 512-passage one, however long that has been waiting, and a caller with one
request has the same share as a caller with two hundred. Requests whose deadline is near go first, earliest deadline
first, whoever sent them, except that half of a batch is left to callers with little; `admission` reserves time for
active callers so that this stays rare. Pure: no clock, no thread, no engine.
"""

import heapq
import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, NamedTuple, TypeVar

from rerank_service.replica.scheduler.deadlines import Demand, urgent

__all__ = ["Drawn", "FairQueue"]

JobT = TypeVar("JobT", bound=Hashable)

_MAX_MISFITS = 8
"""Requests passed over in search of a pair that still fits; more would cost time for little fill."""

_QUIET_SHARE = 0.03
"""A caller with less than this part of an equal share of the queue gives way to nobody's deadlines. More makes those
late, less makes it wait longer (benchmarks/callers.py)."""


class Drawn(NamedTuple, Generic[JobT]):
    """One pair of a batch."""

    job: JobT
    position: int
    """Of the pair in its job."""
    num_tokens: int


@dataclass(slots=True)
class _PendingJob(Generic[JobT]):
    job: JobT
    lengths: Sequence[int]
    position: int = 0


@dataclass(slots=True)
class _Request(Generic[JobT]):
    """The jobs of one request: its shards that came to this replica."""

    request_id: str
    caller: "_Caller[JobT]"
    served_tokens: int
    deadline_s: float
    num_tokens: int = 0
    """That wait."""
    jobs: deque[_PendingJob[JobT]] = field(default_factory=deque)

    @property
    def next_length(self) -> int:
        pending = self.jobs[0]
        return pending.lengths[pending.position]


@dataclass(slots=True)
class _Caller(Generic[JobT]):
    """The requests of one caller."""

    name: str
    served_tokens: int
    num_tokens: int = 0
    """That wait."""
    requests: dict[str, _Request[JobT]] = field(default_factory=dict)
    heap: list[tuple[int, int, _Request[JobT]]] = field(default_factory=list)  # served tokens, arrival, request
    virtual_tokens: int = 0  # what its least served request had when it was last drawn from


class FairQueue(Generic[JobT]):
    """Jobs wait here pair by pair. A job is one shard: lengths in tokens, in order."""

    def __init__(self) -> None:
        self._requests: dict[str, _Request[JobT]] = {}
        self._callers: dict[str, _Caller[JobT]] = {}
        self._heap: list[tuple[int, int, _Caller[JobT]]] = []  # served tokens, arrival, caller: one entry each
        self._arrivals = count()
        self._virtual_tokens = 0  # what the least served caller had when it was last drawn from
        self.num_tokens = 0
        self.num_pairs = 0

    def __bool__(self) -> bool:
        return self.num_pairs > 0

    @property
    def demands(self) -> list[Demand]:
        """What each request still waits for."""
        return [Demand(request.deadline_s, request.num_tokens) for request in self._requests.values()]

    @property
    def backlogs(self) -> dict[str, int]:
        """Tokens of each caller that wait."""
        return {name: caller.num_tokens for name, caller in self._callers.items()}

    def add(
        self, request_id: str, job: JobT, lengths: Sequence[int], deadline_s: float = math.inf, caller: str = ""
    ) -> None:
        """Appends a job's pairs to its request's. Deadline, on any clock, and caller are the request's first job's."""
        if not lengths:
            return
        request = self._requests.get(request_id)
        if request is None:
            owner = self._callers.get(caller)
            if owner is None:
                owner = self._callers[caller] = _Caller(caller, self._virtual_tokens)
                heapq.heappush(self._heap, (owner.served_tokens, next(self._arrivals), owner))
            request = _Request(request_id, owner, owner.virtual_tokens, deadline_s)
            self._requests[request_id] = owner.requests[request_id] = request
            self._push(request)
        request.jobs.append(_PendingJob(job, lengths))
        self._count(request, len(lengths), sum(lengths))

    def discard(self, request_id: str, job: JobT) -> int:
        """Drops what is left of a job; returns how many pairs that was."""
        request = self._requests.get(request_id)
        if request is None:
            return 0
        left = [pending for pending in request.jobs if pending.job == job]
        request.jobs = deque(pending for pending in request.jobs if pending.job != job)
        num_pairs = 0
        for pending in left:
            num_pairs += len(pending.lengths) - pending.position
            self._count(request, 0, -sum(pending.lengths[pending.position :]))
        self.num_pairs -= num_pairs
        self._forget_if_done(request)
        return num_pairs

    def take(self, max_tokens: int, now_s: float = 0.0, tokens_per_s: float | None = None) -> list[Drawn[JobT]]:
        """The next batch: at most `max_tokens`, except that a longer pair comes alone.

        `now_s`, on the clock of the deadlines, is when the batch can start; with the device's speed it tells which
        requests are urgent. Without a speed none is.
        """
        return _Batch(self, max_tokens, now_s, tokens_per_s).fill()

    def _count(self, request: _Request[JobT], num_pairs: int, num_tokens: int) -> None:
        request.num_tokens += num_tokens
        request.caller.num_tokens += num_tokens
        self.num_tokens += num_tokens
        self.num_pairs += num_pairs

    def _forget_if_done(self, request: _Request[JobT]) -> None:
        """What is left in the heaps is skipped when it comes up."""
        if request.jobs:
            return
        caller = request.caller
        del self._requests[request.request_id], caller.requests[request.request_id]
        if not caller.requests:
            del self._callers[caller.name]

    def _draw(self, request: _Request[JobT]) -> Drawn[JobT]:
        """The request's next pair. Places in the heaps are the caller's to renew."""
        pending, length = request.jobs[0], request.next_length
        drawn = Drawn(pending.job, pending.position, length)
        pending.position += 1
        request.served_tokens += length
        request.caller.served_tokens += length
        self._count(request, -1, -length)
        if pending.position == len(pending.lengths):
            request.jobs.popleft()
        self._forget_if_done(request)
        return drawn

    def _push(self, request: _Request[JobT]) -> None:
        heapq.heappush(request.caller.heap, (request.served_tokens, next(self._arrivals), request))


class _Batch(Generic[JobT]):
    """One batch while it is filled."""

    def __init__(self, queue: FairQueue[JobT], max_tokens: int, now_s: float, tokens_per_s: float | None) -> None:
        self._queue = queue
        self._max_tokens = max_tokens
        self._room = max_tokens
        self._drawn: list[Drawn[JobT]] = []
        self._misfits: list[_Request[JobT]] = []
        self._urgent = self._urgent_ones(now_s, tokens_per_s) if tokens_per_s else []

    def fill(self) -> list[Drawn[JobT]]:
        if self._urgent:
            self._draw_quiet()
        if self._draw_urgent():
            self._draw_fairly()
        for request in self._misfits:
            self._queue._push(request)
        return self._drawn

    def _draw_quiet(self) -> None:
        """Before anything urgent, up to half of the batch, so that another caller's deadlines at most double a wait."""
        callers = self._queue._callers
        most_tokens = self._queue.num_tokens * _QUIET_SHARE / len(callers)
        quiet = [caller for caller in callers.values() if caller.num_tokens <= most_tokens]
        while quiet and self._room > self._max_tokens // 2:
            caller = min(quiet, key=lambda one: one.served_tokens)
            request = self._next_of(caller)
            if request is None:
                quiet.remove(caller)
                continue
            self._draw(request)
            if not caller.requests:
                quiet.remove(caller)

    def _draw_urgent(self) -> bool:
        """False if one did not fit: filling the rest of the batch with other pairs makes large requests late."""
        for request in self._urgent:
            while request.jobs:
                if not self._fits(request):
                    return False
                self._draw(request)
        return True

    def _draw_fairly(self) -> None:
        queue, passed_over = self._queue, list[_Caller[JobT]]()
        while queue._heap and len(self._misfits) + len(passed_over) < _MAX_MISFITS:
            served_tokens, _, caller = heapq.heappop(queue._heap)
            if queue._callers.get(caller.name) is not caller:
                continue
            if served_tokens != caller.served_tokens:  # drawn from since
                heapq.heappush(queue._heap, (caller.served_tokens, next(queue._arrivals), caller))
                continue
            request = self._next_of(caller)
            if request is None:
                passed_over.append(caller)
                continue
            if not passed_over:
                queue._virtual_tokens = caller.served_tokens
            self._draw(request)
            if caller.requests:
                heapq.heappush(queue._heap, (caller.served_tokens, next(queue._arrivals), caller))
        for caller in passed_over:
            heapq.heappush(queue._heap, (caller.served_tokens, next(queue._arrivals), caller))

    def _draw(self, request: _Request[JobT]) -> None:
        self._room -= request.next_length
        self._drawn.append(self._queue._draw(request))

    def _next_of(self, caller: _Caller[JobT]) -> _Request[JobT] | None:
        """Null where nothing of the caller fits."""
        while caller.heap and len(self._misfits) < _MAX_MISFITS:
            served_tokens, _, request = caller.heap[0]
            if caller.requests.get(request.request_id) is not request:
                heapq.heappop(caller.heap)
            elif served_tokens != request.served_tokens:  # drawn from since
                heapq.heapreplace(caller.heap, (request.served_tokens, next(self._queue._arrivals), request))
            elif not self._fits(request):
                heapq.heappop(caller.heap)
                self._misfits.append(request)
            else:
                if not self._misfits:
                    caller.virtual_tokens = request.served_tokens
                return request
        return None

    def _fits(self, request: _Request[JobT]) -> bool:
        return not self._drawn or request.next_length <= self._room

    def _urgent_ones(self, now_s: float, tokens_per_s: float) -> list[_Request[JobT]]:
        ordered = sorted(self._queue._requests.values(), key=lambda request: request.deadline_s)
        demands = [Demand(request.deadline_s, request.num_tokens) for request in ordered]
        return [ordered[position] for position in urgent(demands, self._max_tokens, now_s, tokens_per_s)]
