"""How fast the device has been and how large its next batch should be. Pure: no clock, no thread, no engine."""

import math

__all__ = ["DrainRate", "batch_budget", "may_launch"]

_NEWEST_SHARE = 0.2
"""Weight of the newest batch in the drain rate."""
_LONGEST_RETRY_S = 60

_BATCHES_OF_WHAT_WAITS = 24
"""A request that comes now waits for the batch running and shares the next: about 1.5/24 of what was there."""


class DrainRate:
    """Tokens a second that a replica has scored of late."""

    def __init__(self) -> None:
        self.tokens_per_s: float | None = None
        self._last_at_s = 0.0

    def add(self, num_tokens: int, started_at_s: float, now_s: float) -> float:
        """A batch that is done; gives the seconds it kept the device busy.

        Time without work does not count: from the batch before, or from its own start.
        """
        busy_s = now_s - max(self._last_at_s, started_at_s)
        self._last_at_s = now_s
        rate = num_tokens / max(busy_s, 1e-6)
        before = self.tokens_per_s
        self.tokens_per_s = rate if before is None else before + _NEWEST_SHARE * (rate - before)
        return busy_s

    def seconds_for(self, num_tokens: int) -> int:
        """Whole seconds until so many tokens are scored, from 1 to a minute; 1 while nothing is known."""
        if self.tokens_per_s is None:
            return 1
        return min(_LONGEST_RETRY_S, max(1, math.ceil(num_tokens / self.tokens_per_s)))


def batch_budget(queued_tokens: int, fewest_tokens: int | None, most_tokens: int) -> int:
    """Most tokens of the next batch: a small share of what waits, between the two bounds.

    So batches are full under load, and short where one large request is all there is and the next may be small.
    `fewest_tokens` null: always `most_tokens`.
    """
    if fewest_tokens is None:
        return most_tokens
    return min(most_tokens, max(fewest_tokens, queued_tokens // _BATCHES_OF_WHAT_WAITS))


def may_launch(num_in_flight: int, max_in_flight: int, queued_tokens: int, budget_tokens: int) -> bool:
    """Whether the device gets a batch now: a free one anything, a busy one only once the queue fills a batch."""
    if num_in_flight == 0:
        return queued_tokens > 0
    return num_in_flight < max_in_flight and queued_tokens >= budget_tokens
