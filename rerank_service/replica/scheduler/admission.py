"""Whether a replica takes more work, or refuses it with the figures behind the refusal.

A caller with more waiting than an equal share is promised only the time that active callers leave if they go on as of
late. A caller with less may also use part of the reserve that every promise holds. So accepted work can be kept, and
one caller's backlog hardly ever has another's requests refused. Used by the scheduler and by the simulated replica of
`planning`. Pure: no clock, no thread, no engine.
"""

from typing import Any

from rerank_service.errors import QueueFull, WaitTooLong
from rerank_service.replica.scheduler.activity import Activity
from rerank_service.replica.scheduler.deadlines import PROMISED, Demand, Lateness, lateness
from rerank_service.replica.scheduler.fair_queue import FairQueue
from rerank_service.replica.scheduler.pace import DrainRate

__all__ = ["Admission"]

_MOST_RESERVED = 0.5
"""Share of the device that can be kept free for other callers, however many have been active."""
_EXPECTED = 1.5
"""Work expected of another caller, as a multiple of what it has offered of late: arrivals are uneven."""
_QUIET_BONUS = 0.08
"""Share of the time that a caller below its equal share is promised beyond the others'."""
_LONGEST_HORIZON_S = 3600.0


class Admission:
    """The rule of one replica, over its queue and the speed it has been seen to have."""

    def __init__(self, queue: FairQueue[Any], drain: DrainRate, max_queued_tokens: int) -> None:
        self._queue = queue
        self._drain = drain
        self.max_queued_tokens = max_queued_tokens
        self._activity = Activity()

    def refusal(
        self, newcomer: Demand, in_flight_tokens: int, budget_tokens: int, now_s: float, caller: str = ""
    ) -> QueueFull | WaitTooLong | None:
        """Why a newcomer must be refused; null if it is taken, as it always is by a replica where nothing waits.

        `in_flight_tokens` are on the device, `budget_tokens` are the next batch's; `now_s` is on the clock of the
        deadlines.
        """
        queued, speed = self._queue.num_tokens, self._drain.tokens_per_s
        offered = self._activity.tokens_per_s(now_s)
        self._activity.add(caller, newcomer.num_tokens, now_s)
        if not queued:
            return None
        backlogs = self._queue.backlogs
        own_tokens = backlogs.get(caller, 0) + newcomer.num_tokens
        if self._is_full(own_tokens, queued + newcomer.num_tokens, len(backlogs.keys() | {caller})):
            excess = queued + newcomer.num_tokens - self.max_queued_tokens
            return QueueFull(queued, self.max_queued_tokens, self._drain.seconds_for(excess))
        busy = in_flight_tokens + budget_tokens
        if speed and (late := self._broken_promise(newcomer, caller, backlogs, offered, busy, now_s, speed)):
            return WaitTooLong(*late, self._drain.seconds_for((queued + in_flight_tokens) // 2))
        return None

    def _is_full(self, own_tokens: int, all_tokens: int, num_callers: int) -> bool:
        """A caller that holds no more than an equal share of the bound is taken above it, up to twice the bound."""
        if all_tokens <= self.max_queued_tokens:
            return False
        is_quiet = own_tokens <= self.max_queued_tokens // num_callers
        return not is_quiet or all_tokens > 2 * self.max_queued_tokens

    def _broken_promise(
        self,
        newcomer: Demand,
        caller: str,
        backlogs: dict[str, int],
        offered: dict[str, float],
        busy: int,
        now_s: float,
        speed: float,
    ) -> Lateness | None:
        """What would be late if the newcomer were taken; null if nothing would. `offered` is in tokens a second."""
        horizon_s = PROMISED * min(max(0.0, newcomer.deadline_s - now_s), _LONGEST_HORIZON_S)
        others = (offered.keys() | backlogs.keys()) - {caller}
        share = horizon_s * speed / (len(others) + 1)
        if others and backlogs.get(caller, 0) + newcomer.num_tokens <= share:
            return lateness(newcomer, self._queue.demands, busy, now_s, speed, _QUIET_BONUS)
        expected = (
            min(_EXPECTED * offered.get(other, 0.0) * horizon_s, share)
            - backlogs.get(other, 0)  # what waits is counted already
            for other in others
        )
        reserved = sum(max(0.0, tokens) for tokens in expected) / max(1.0, horizon_s * speed)
        return lateness(newcomer, self._queue.demands, busy, now_s, speed * (1 - min(reserved, _MOST_RESERVED)))
