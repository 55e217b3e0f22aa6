"""Admission: decides whether a replica accepts or refuses new work, and gives the figures behind a refusal.

The rules use the measured speed and the deadlines. A caller whose backlog is above an equal share is promised only the
device time that remains if the other active callers keep up their recent rates. A caller below its share may also use
part of the reserve that every promise includes. Accepted work therefore finishes in time, and one caller's backlog
rarely causes another caller's requests to be refused. The scheduler and the simulated replica of `planning` share these
rules. The module uses no clock, thread or engine.
"""

import heapq
import math
from collections.abc import Iterable
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from rerank_service.errors import QueueFull, WaitTooLong
from rerank_service.replica.scheduler.fair_queue import PROTECTED, FairQueue, TokensDue

__all__ = [
    "Activity",
    "Admission",
    "DrainRate",
    "Lateness",
    "batch_budget",
    "lateness",
    "may_launch",
]

_PROMISED = 0.8
"""Share of a new request's time limit within which the request must be done. The rest is a reserve in case the speed
was overestimated."""
_MOST_RESERVED = 0.5
"""Largest share of the device kept free for other callers, however many have been active."""
_EXPECTED = 1.5
"""Rate of work expected from another caller, as a multiple of its recent rate, because arrivals are uneven."""
_QUIET_BONUS = 0.08
"""Amount added to `_PROMISED` for a caller below its equal share."""
_LONGEST_HORIZON_S = 3600.0

_REMEMBERED_BATCHES = 5
"""Number of full batches over which the drain rate is averaged."""
_LONGEST_RETRY_S = 60

_BATCHES_IN_QUEUE = 24
"""Number of batches into which the queue is divided. A new request waits for the running batch and shares the next one:
together about 1.5/24 of the time to clear the queue."""

_FEWEST_PAIRS = 4
"""Number of pairs of average length for which a short batch grows, up to twice its size. With 390 tokens a pair,
batches of 1,024 tokens would hold two, which costs 10% more on a CPU in int8. Behind longer batches, a small request
would wait too long: with eight such pairs, for a fifth of the time that 100 pairs take."""

_MEMORY_S = 8.0
"""Time after which a token counts for 1/e in a caller's rate."""
_MAX_CALLERS = 500
"""Number of callers to keep. When more than twice as many callers are being tracked, only the ones with the highest
rates are kept."""


class DrainRate:
    """Recent speed of a replica's device, in tokens per second of busy time."""

    def __init__(self) -> None:
        self.tokens_per_s: float | None = None
        """Null before the first batch."""
        self._last_at_s = 0.0
        self._largest_tokens = 0
        self._averaged_tokens = 0

    def add(self, num_tokens: int, started_at_s: float, now_s: float) -> float:
        """Counts a finished batch and returns the seconds it kept the device busy.

        Idle time is left out: the batch counts from its own start, or from the end of the previous batch if that is
        later. Batches are weighted by their tokens: a batch of one short pair takes nearly as long as a batch of many
        pairs, and says little about the speed under load.
        """
        busy_s = now_s - max(self._last_at_s, started_at_s)
        self._last_at_s = now_s
        self._largest_tokens = max(self._largest_tokens, num_tokens)
        self._averaged_tokens = min(self._averaged_tokens + num_tokens, _REMEMBERED_BATCHES * self._largest_tokens)
        rate = num_tokens / max(busy_s, 1e-6)
        before = rate if self.tokens_per_s is None else self.tokens_per_s
        self.tokens_per_s = before + num_tokens / max(1, self._averaged_tokens) * (rate - before)
        return busy_s

    def seconds_for(self, num_tokens: int) -> int:
        """Time to score `num_tokens`, in whole seconds from 1 to 60; 1 while the speed is unknown."""
        if self.tokens_per_s is None:
            return 1
        return min(_LONGEST_RETRY_S, max(1, math.ceil(num_tokens / self.tokens_per_s)))


def batch_budget(queued_tokens: int, queued_pairs: int, fewest_tokens: int | None, most_tokens: int) -> int:
    """Token budget of the next batch: a small share of the queue, between two bounds.

    Batches are full under load, and short when only one large request is queued, in case a small request follows.
    Without `fewest_tokens`, the budget is always `most_tokens`.
    """
    if fewest_tokens is None:
        return most_tokens
    of_pairs = min(queued_tokens, -(-_FEWEST_PAIRS * queued_tokens // max(1, queued_pairs)), 2 * fewest_tokens)
    return min(most_tokens, max(fewest_tokens, of_pairs, queued_tokens // _BATCHES_IN_QUEUE))


def may_launch(num_in_flight: int, max_in_flight: int, queued_tokens: int, budget_tokens: int) -> bool:
    """Whether to launch a batch now: an idle device takes any batch, a busy device only a full one."""
    if num_in_flight == 0:
        return queued_tokens > 0
    return num_in_flight < max_in_flight and queued_tokens >= budget_tokens


class Activity:
    """Recent token rate of each caller: exponentially decayed counts of the tokens that the caller offered."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, float]] = {}  # tokens, and the time to which they are decayed

    def add(self, caller: str, num_tokens: int, now_s: float) -> None:
        """Counts tokens that a caller offered, whether they are accepted or not."""
        before, at_s = self._counts.get(caller, (0.0, now_s))
        self._counts[caller] = before * math.exp((at_s - now_s) / _MEMORY_S) + num_tokens, now_s
        if len(self._counts) > 2 * _MAX_CALLERS:
            self.tokens_per_s(now_s)
            self._counts = dict(heapq.nlargest(_MAX_CALLERS, self._counts.items(), key=itemgetter(1)))

    def tokens_per_s(self, now_s: float) -> dict[str, float]:
        """Returns the rate of each recently active caller, and forgets the other callers."""
        rates: dict[str, float] = {}
        for caller, (num_tokens, at_s) in list(self._counts.items()):
            decayed = num_tokens * math.exp((at_s - now_s) / _MEMORY_S)
            if decayed > 1.0:
                self._counts[caller] = decayed, now_s
                rates[caller] = decayed / _MEMORY_S
            else:
                del self._counts[caller]
        return rates


class Lateness(NamedTuple):
    """Reason for refusing a new request: this request, or one accepted earlier, would take `expected_s`, but is due in
    `time_s`."""

    expected_s: float
    time_s: float
    reserve_s: float
    """Part of `time_s` that is kept in reserve."""
    is_another: bool
    """Whether the late work is an accepted request with a later deadline, rather than the new request."""


def lateness(
    newcomer: TokensDue,
    others: Iterable[TokensDue],
    busy_tokens: int,
    now_s: float,
    tokens_per_s: float,
    bonus: float = 0.0,
) -> Lateness | None:
    """Returns how late the newcomer, or one of `others` with a later deadline, would be; null if none would be late.

    Work is done in the order of deadlines, after `busy_tokens`: the tokens on the device plus one batch, because a
    request is done only when its last batch is done. Requests already late do not block newcomers. `bonus` raises the
    share of the newcomer's time that may be promised; half of `bonus` raises the share of the other requests.
    """
    promised, protected = _PROMISED + bonus, PROTECTED + bonus / 2
    later, earlier_tokens = [], 0
    for other in others:
        if other.deadline_s > newcomer.deadline_s:
            later.append(other)
        else:
            earlier_tokens += other.num_tokens
    own_s = newcomer.num_tokens / tokens_per_s
    done_s = (busy_tokens + earlier_tokens) / tokens_per_s + own_s
    time_s = newcomer.deadline_s - now_s
    if done_s > promised * time_s:
        return Lateness(done_s, time_s, (1 - promised) * time_s, is_another=False)
    for other in sorted(later, key=attrgetter("deadline_s", "num_tokens")):
        done_s += other.num_tokens / tokens_per_s
        time_s = other.deadline_s - now_s
        if done_s > protected * time_s and done_s - own_s <= time_s:
            return Lateness(done_s, time_s, (1 - protected) * time_s, is_another=True)
    return None


class Admission:
    """The admission rule of one replica, based on its queue and its measured speed."""

    def __init__(self, queue: FairQueue[Any], drain: DrainRate, max_queued_tokens: int) -> None:
        self._queue = queue
        self._drain = drain
        self.max_queued_tokens = max_queued_tokens
        self._activity = Activity()

    def refusal(
        self, newcomer: TokensDue, in_flight_tokens: int, budget_tokens: int, now_s: float, caller: str = ""
    ) -> QueueFull | WaitTooLong | None:
        """The error that refuses a new request; null if the request is accepted. An empty queue accepts any request.

        `in_flight_tokens` are on the device, `budget_tokens` is the size of the next batch, and `now_s` is on the clock
        of the deadlines.
        """
        self._activity.add(caller, newcomer.num_tokens, now_s)
        queued, backlogs = self._queue.num_tokens, self._queue.backlogs
        if not queued:
            return None
        own_tokens, all_tokens = backlogs.get(caller, 0) + newcomer.num_tokens, queued + newcomer.num_tokens
        if all_tokens > self.max_queued_tokens:
            # Above the bound, a caller with at most an equal share of the bound is still accepted, up to twice the
            # bound.
            equal_share = self.max_queued_tokens // len(backlogs.keys() | {caller})
            if own_tokens > equal_share or all_tokens > 2 * self.max_queued_tokens:
                retry_after_s = self._drain.seconds_for(all_tokens - self.max_queued_tokens)
                return QueueFull(queued, self.max_queued_tokens, retry_after_s)
        speed = self._drain.tokens_per_s
        busy_tokens = in_flight_tokens + budget_tokens
        if speed and (late := self._broken_promise(newcomer, caller, own_tokens, busy_tokens, now_s, speed)):
            return WaitTooLong(*late, self._drain.seconds_for((queued + in_flight_tokens) // 2))
        return None

    def _broken_promise(
        self, newcomer: TokensDue, caller: str, own_tokens: int, busy_tokens: int, now_s: float, speed: float
    ) -> Lateness | None:
        """Returns how late a request would be if the newcomer were accepted and the other callers kept up their recent
        rates; null if none would be late."""
        horizon_s = _PROMISED * min(max(0.0, newcomer.deadline_s - now_s), _LONGEST_HORIZON_S)
        rates, backlogs = self._activity.tokens_per_s(now_s), self._queue.backlogs
        others = (rates.keys() | backlogs.keys()) - {caller}
        share = horizon_s * speed / (len(others) + 1)
        if others and own_tokens <= share:
            return lateness(newcomer, self._queue.requests, busy_tokens, now_s, speed, _QUIET_BONUS)
        reserved_tokens = 0.0
        for other in others:
            expected = min(_EXPECTED * rates.get(other, 0.0) * horizon_s, share)
            reserved_tokens += max(0.0, expected - backlogs.get(other, 0))  # the backlog is counted by `lateness`
        reserved = min(reserved_tokens / max(1.0, horizon_s * speed), _MOST_RESERVED)
        return lateness(newcomer, self._queue.requests, busy_tokens, now_s, speed * (1 - reserved))
