"""When a request is sent again, and how long all of it may take; knows nothing of HTTP."""

import time
from typing import Any

from tenacity import RetryCallState, retry_if_exception, wait_random, wait_random_exponential

from .errors import ConnectionFailed, RateLimitedError, ServiceUnavailableError

__all__ = ["Deadline", "retry_options"]

_BACKOFF = wait_random_exponential(multiplier=0.25, max=8)
"""Seconds; anything from 0 up to a bound that doubles."""
_SPREAD = wait_random(0, 0.25)
"""Seconds on top of the service's own `Retry-After`, so that those it refused together do not come back together."""
_MAX_BROKEN_CONNECTIONS = 1
"""A load balancer may close a kept connection just as a request goes out: once is no news, twice is."""


class Deadline:
    """The end of a call, on a clock that nobody sets."""

    def __init__(self, timeout_s: float) -> None:
        self._ends = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds until then, never negative."""
        return max(0.0, self._ends - time.monotonic())


def retry_options(max_retries: int, deadline: Deadline) -> dict[str, Any]:
    """What tenacity's `Retrying` and `AsyncRetrying` are told for one request; not to be used for a second.

    Only what a retry can mend is sent again: 429, 503, and one broken connection. Never past the deadline: the
    error that a wait could not mend in time is raised at once.
    """
    retries = _Retries(max_retries, deadline)
    return {
        "retry": retry_if_exception(retries.can_mend),
        "wait": retries.wait_s,
        "stop": retries.is_over,
        "reraise": True,
    }


class _Retries:
    def __init__(self, max_retries: int, deadline: Deadline) -> None:
        self._max_retries = max_retries
        self._deadline = deadline
        self._num_broken_connections = 0

    def can_mend(self, error: BaseException) -> bool:
        if isinstance(error, ConnectionFailed):
            self._num_broken_connections += 1
            return self._num_broken_connections <= _MAX_BROKEN_CONNECTIONS
        return isinstance(error, RateLimitedError | ServiceUnavailableError)

    def wait_s(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RateLimitedError | ServiceUnavailableError) and error.retry_after_s is not None:
            return error.retry_after_s + _SPREAD(state)
        return _BACKOFF(state)

    def is_over(self, state: RetryCallState) -> bool:
        return state.attempt_number > self._max_retries or state.upcoming_sleep >= self._deadline.left_s()
