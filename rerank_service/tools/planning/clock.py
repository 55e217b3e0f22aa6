"""A virtual clock: calls happen in the order of their time. Knows nothing of what they do."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

__all__ = ["Clock"]


class Clock:
    """Time of a simulation, in seconds from its start."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.is_stopped = False
        self._calls: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()

    def at(self, at_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Calls of the same time happen in the order they were asked for."""
        heapq.heappush(self._calls, (at_s, next(self._order), call, arguments))

    def run(self) -> None:
        """Until nothing is left to call, or a call has set `is_stopped`."""
        while self._calls and not self.is_stopped:
            self.now_s, _, call, arguments = heapq.heappop(self._calls)
            call(*arguments)
