"""Pending pairs of several requests, drawn in batches of a token budget that requests share fairly.

Start-time fair queueing (Goyal, Vin, Cheng 1996): the request served the fewest tokens so far goes next, and
a new one starts level with the least served. A 10-passage request therefore shares the next batch with a
512-passage one, however long that has been waiting. Requests whose deadline is near go before all others, earliest
deadline first. Pure: no clock, no thread, no engine.
"""

import heapq
import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from rerank_service.scheduler.deadlines import Demand, urgent

__all__ = ["Drawn", "FairQueue"]

JobT = TypeVar("JobT", bound=Hashable)

_MAX_MISFITS = 8
"""Requests passed over in search of a pair that still fits; more would cost time for little fill."""


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
    served_tokens: int
    deadline_s: float
    num_tokens: int = 0
    """That wait."""
    jobs: deque[_PendingJob[JobT]] = field(default_factory=deque)


class FairQueue(Generic[JobT]):
    """Jobs wait here pair by pair. A job is one shard: lengths in tokens, in order."""

    def __init__(self) -> None:
        self._requests: dict[str, _Request[JobT]] = {}
        self._heap: list[tuple[int, int, _Request[JobT]]] = []  # served tokens, arrival, request
        self._arrivals = 0
        self._virtual_tokens = 0  # what the least served request had when it was last drawn from
        self.num_tokens = 0
        self.num_pairs = 0

    def __bool__(self) -> bool:
        return self.num_pairs > 0

    @property
    def demands(self) -> list[Demand]:
        """What each request still waits for."""
        return [Demand(request.deadline_s, request.num_tokens) for request in self._requests.values()]

    def add(self, request_id: str, job: JobT, lengths: Sequence[int], deadline_s: float = math.inf) -> None:
        """Appends a job's pairs to its request's. The deadline, on any clock, is the request's first job's."""
        if not lengths:
            return
        request = self._requests.get(request_id)
        if request is None:
            request = self._requests[request_id] = _Request(request_id, self._virtual_tokens, deadline_s)
            self._push(request)
        request.jobs.append(_PendingJob(job, lengths))
        request.num_tokens += sum(lengths)
        self.num_tokens += sum(lengths)
        self.num_pairs += len(lengths)

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
            num_tokens = sum(pending.lengths[pending.position :])
            request.num_tokens -= num_tokens
            self.num_tokens -= num_tokens
        self.num_pairs -= num_pairs
        if not request.jobs:
            del self._requests[request_id]  # its heap entry is skipped when it comes up
        return num_pairs

    def take(self, max_tokens: int, now_s: float = 0.0, tokens_per_s: float | None = None) -> list[Drawn[JobT]]:
        """The next batch: at most `max_tokens`, except that a longer pair comes alone.

        `now_s`, on the clock of the deadlines, is when the batch can start; with the device's speed it tells which
        requests are urgent. Without a speed none is.
        """
        batch, is_full = self._take_urgent(max_tokens, now_s, tokens_per_s) if tokens_per_s else ([], False)
        if is_full:
            return batch
        room = max_tokens - sum(drawn.num_tokens for drawn in batch)
        misfits: list[_Request[JobT]] = []
        while self._heap and len(misfits) < _MAX_MISFITS:
            served_tokens, _, request = heapq.heappop(self._heap)
            if self._requests.get(request.request_id) is not request:
                continue
            if served_tokens != request.served_tokens:  # it was urgent meanwhile
                self._push(request)
                continue
            length = _next_length(request)
            if length > room and batch:
                misfits.append(request)
                continue
            if not misfits:
                self._virtual_tokens = request.served_tokens
            batch.append(self._draw(request))
            room -= length
            if request.jobs:
                self._push(request)
        for request in misfits:
            self._push(request)
        return batch

    def _take_urgent(self, max_tokens: int, now_s: float, tokens_per_s: float) -> tuple[list[Drawn[JobT]], bool]:
        """What goes first, and whether more of it is left: then nobody else's pair may fill the batch."""
        by_deadline = sorted(self._requests.values(), key=lambda request: request.deadline_s)
        demands = [Demand(request.deadline_s, request.num_tokens) for request in by_deadline]
        batch: list[Drawn[JobT]] = []
        room = max_tokens
        for position in urgent(demands, max_tokens, now_s, tokens_per_s):
            request = by_deadline[position]
            while request.jobs and (not batch or _next_length(request) <= room):
                batch.append(self._draw(request))
                room -= batch[-1].num_tokens
            if request.jobs:
                return batch, True
        return batch, False

    def _draw(self, request: _Request[JobT]) -> Drawn[JobT]:
        """The request's next pair. Its place in the heap is the caller's to renew."""
        pending = request.jobs[0]
        length = pending.lengths[pending.position]
        drawn = Drawn(pending.job, pending.position, length)
        pending.position += 1
        request.served_tokens += length
        request.num_tokens -= length
        self.num_tokens -= length
        self.num_pairs -= 1
        if pending.position == len(pending.lengths):
            request.jobs.popleft()
        if not request.jobs:
            del self._requests[request.request_id]
        return drawn

    def _push(self, request: _Request[JobT]) -> None:
        self._arrivals += 1
        heapq.heappush(self._heap, (request.served_tokens, self._arrivals, request))


def _next_length(request: _Request[JobT]) -> int:
    pending = request.jobs[0]
    return pending.lengths[pending.position]
