"""Whether a replica takes more work, or refuses it with the figures behind the refusal.

Callers share the device equally (`fair_queue`), so each is promised what its own share can keep: one caller's backlog
does not have another's requests refused, beyond the first request of it. Used by the scheduler and by the simulated
replica of `planning`. Pure: no clock, no thread, no engine.
"""

from typing import Any

from rerank_service.errors import QueueFull, WaitTooLong
from rerank_service.scheduler.deadlines import Demand, fits, is_pushed_out
from rerank_service.scheduler.fair_queue import FairQueue
from rerank_service.scheduler.pace import DrainRate
from rerank_service.scheduler.shares import Shares

__all__ = ["Admission"]


class Admission:
    """The rule of one replica, over its queue and the speed it has been seen to have."""

    def __init__(self, queue: FairQueue[Any], drain: DrainRate, max_queued_tokens: int) -> None:
        self._queue = queue
        self._drain = drain
        self.max_queued_tokens = max_queued_tokens

    def refusal(
        self, newcomer: Demand, in_flight_tokens: int, budget_tokens: int, now_s: float, caller: str = ""
    ) -> QueueFull | WaitTooLong | None:
        """Why a newcomer must be refused; null if it is taken, as it always is by a replica where nothing waits.

        `in_flight_tokens` are on the device, `budget_tokens` are the next batch's; `now_s` is on the clock of the
        deadlines.
        """
        queued, speed = self._queue.num_tokens, self._drain.tokens_per_s
        if not queued:
            return None
        backlogs = self._queue.backlogs
        own_tokens = backlogs.get(caller, 0) + newcomer.num_tokens
        if self._is_full(own_tokens, queued + newcomer.num_tokens, len(backlogs.keys() | {caller})):
            excess = queued + newcomer.num_tokens - self.max_queued_tokens
            return QueueFull(queued, self.max_queued_tokens, self._drain.seconds_for(excess))
        busy = in_flight_tokens + budget_tokens
        if not speed or self._keeps_promises(newcomer, caller, backlogs, busy, now_s, speed):
            return None
        outstanding = queued + in_flight_tokens
        shares = Shares(backlogs | {caller: own_tokens})
        wait_s = (in_flight_tokens + shares.tokens_until(caller, own_tokens)) / speed
        return WaitTooLong(round(wait_s, 1), self._drain.seconds_for(outstanding // 2))

    def _is_full(self, own_tokens: int, all_tokens: int, num_callers: int) -> bool:
        """A caller that holds no more than an equal share of the bound is taken above it, up to twice the bound."""
        if all_tokens <= self.max_queued_tokens:
            return False
        is_quiet = own_tokens <= self.max_queued_tokens // num_callers
        return not is_quiet or all_tokens > 2 * self.max_queued_tokens

    def _keeps_promises(
        self, newcomer: Demand, caller: str, backlogs: dict[str, int], busy: int, now_s: float, speed: float
    ) -> bool:
        demands = self._queue.demands_by_caller
        own = demands.pop(caller, [])
        own_tokens = backlogs.get(caller, 0) + newcomer.num_tokens
        before, after = Shares(backlogs), Shares(backlogs | {caller: own_tokens})
        position = sum(one.deadline_s <= newcomer.deadline_s for one in own)
        stretched = after.stretched(caller, [*own[:position], newcomer, *own[position:]])
        if not fits(stretched.pop(position), stretched, busy, now_s, speed):
            return False
        for other, theirs in demands.items():
            so_far = 0
            for number, demand in enumerate(theirs):
                so_far += demand.num_tokens
                if number and so_far > own_tokens:
                    break  # beyond its first request, work is safe only from callers that have as much
                old, new = (busy + shares.tokens_until(other, so_far) for shares in (before, after))
                if is_pushed_out(demand.deadline_s - now_s, old / speed, new / speed):
                    return False
        return True
