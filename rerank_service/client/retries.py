"""Rules for retrying a request, and the deadline of a call."""

import time
from typing import Any

from tenacity import RetryCallState, retry_if_exception, wait_random, wait_random_exponential

from .errors import ConnectionFailed, RateLimitedError, ServiceUnavailableError

__all__ = ["Deadline", "retry_options"]

_BACKOFF = wait_random_exponential(multiplier=0.25, max=8)
"""Random wait in seconds, between 0 and a bound that doubles with each attempt."""
_SPREAD = wait_random(0, 0.25)
"""Random seconds added to `Retry-After`, so that clients refused together do not retry together."""
_MAX_BROKEN_CONNECTIONS = 1
"""One broken connection is normal: a load balancer may close an idle connection just as a request is sent on it."""


class Deadline:
    """The deadline of a call, on the monotonic clock."""

    def __init__(self, timeout_s: float) -> None:
        self._ends = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._ends - time.monotonic())


def retry_options(max_retries: int, deadline: Deadline) -> dict[str, Any]:
    """Returns arguments of tenacity's `Retrying` or `AsyncRetrying` for one request. The arguments keep state, so use
    them only once.

    A request is retried after a response with the status 429 or 503, and once after a broken connection. If the next
    wait would exceed the deadline, the error is raised immediately.
    """
    retries = _Retries(max_retries, deadline)
    return {
        "retry": retry_if_exception(retries.is_retryable),
        "wait": retries.wait_s,
        "stop": retries.is_over,
        "reraise": True,
    }


class _Retries:
    def __init__(self, max_retries: int, deadline: Deadline) -> None:
        self._max_retries = max_retries
        self._deadline = deadline
        self._num_broken_connections = 0

    def is_retryable(self, error: BaseException) -> bool:
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
