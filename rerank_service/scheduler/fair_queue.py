"""Pending pairs of several requests, drawn in batches of a token budget that requests share fairly.

Start-time fair queueing (Goyal, Vin, Cheng 1996): the request served the fewest tokens so far goes next, and
a new one starts level with the least served. A 10-passage request therefore shares the next batch with a
512-passage one, however long that has been waiting. Pure: no clock, no thread, no engine.
"""

import heapq
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Drawn", "FairQueue"]

JobT = TypeVar("JobT", bound=Hashable)

_MAX_MISFITS = 8
"""Requests passed over in search of a pair that still fits; more would cost time for little fill."""


class Drawn(NamedTuple, Generic[JobT]):
    """One pair of a batch."""

    job: JobT
    position: int
    """Of the pair in its job."""


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

    def add(self, request_id: str, job: JobT, lengths: Sequence[int]) -> None:
        """Appends a job's pairs to its request's."""
        if not lengths:
            return
        request = self._requests.get(request_id)
        if request is None:
            request = self._requests[request_id] = _Request(request_id, self._virtual_tokens)
            self._push(request)
        request.jobs.append(_PendingJob(job, lengths))
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
            self.num_tokens -= sum(pending.lengths[pending.position :])
        self.num_pairs -= num_pairs
        if not request.jobs:
            del self._requests[request_id]  # its heap entry is skipped when it comes up
        return num_pairs

    def take(self, max_tokens: int) -> list[Drawn[JobT]]:
        """The next batch: at most `max_tokens`, except that a longer pair comes alone."""
        batch: list[Drawn[JobT]] = []
        room = max_tokens
        misfits: list[_Request[JobT]] = []
        while self._heap and len(misfits) < _MAX_MISFITS:
            _, _, request = heapq.heappop(self._heap)
            if self._requests.get(request.request_id) is not request:
                continue
            pending = request.jobs[0]
            length = pending.lengths[pending.position]
            if length > room and batch:
                misfits.append(request)
                continue
            if not misfits:
                self._virtual_tokens = request.served_tokens
            batch.append(self._draw(request, pending, length))
            room -= length
        for request in misfits:
            self._push(request)
        return batch

    def _draw(self, request: _Request[JobT], pending: _PendingJob[JobT], length: int) -> Drawn[JobT]:
        drawn = Drawn(pending.job, pending.position)
        pending.position += 1
        request.served_tokens += length
        self.num_tokens -= length
        self.num_pairs -= 1
        if pending.position == len(pending.lengths):
            request.jobs.popleft()
        if request.jobs:
            self._push(request)
        else:
            del self._requests[request.request_id]
        return drawn

    def _push(self, request: _Request[JobT]) -> None:
        self._arrivals += 1
        heapq.heappush(self._heap, (request.served_tokens, self._arrivals, request))
