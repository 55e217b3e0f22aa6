"""Whether a replica takes more work, or refuses it with the figures behind the refusal.

Used by the scheduler and by the simulated replica of `planning`. Pure: no clock, no thread, no engine.
"""

from typing import Any

from rerank_service.errors import QueueFull, WaitTooLong
from rerank_service.scheduler.deadlines import Demand, lateness
from rerank_service.scheduler.fair_queue import FairQueue
from rerank_service.scheduler.pace import DrainRate

__all__ = ["Admission"]


class Admission:
    """The rule of one replica, over its queue and the speed it has been seen to have."""

    def __init__(self, queue: FairQueue[Any], drain: DrainRate, max_queued_tokens: int) -> None:
        self._queue = queue
        self._drain = drain
        self.max_queued_tokens = max_queued_tokens

    def refusal(
        self, newcomer: Demand, in_flight_tokens: int, budget_tokens: int, now_s: float
    ) -> QueueFull | WaitTooLong | None:
        """Why a newcomer must be refused; null if it is taken, as it always is by a replica where nothing waits.

        `in_flight_tokens` are on the device, `budget_tokens` are the next batch's; `now_s` is on the clock of the
        deadlines.
        """
        queued, speed = self._queue.num_tokens, self._drain.tokens_per_s
        if not queued:
            return None
        excess = queued + newcomer.num_tokens - self.max_queued_tokens
        if excess > 0:
            return QueueFull(queued, self.max_queued_tokens, self._drain.seconds_for(excess))
        busy = in_flight_tokens + budget_tokens
        if not speed or (late := lateness(newcomer, self._queue.demands, busy, now_s, speed)) is None:
            return None
        return WaitTooLong(*late, self._drain.seconds_for((queued + in_flight_tokens) // 2))
