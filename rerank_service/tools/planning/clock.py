"""Virtual clock of the simulations; it runs scheduled calls in the order of their times."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

__all__ = ["Clock"]


class Clock:
    """Runs scheduled calls. Times are in seconds since the start of the simulation."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.is_stopped = False
        self._calls: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()

    def at(self, at_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Schedules a call. Calls for the same time run in the order in which they were scheduled."""
        heapq.heappush(self._calls, (at_s, next(self._order), call, arguments))

    def run(self) -> None:
        """Runs scheduled calls until none remains or a call sets `is_stopped`."""
        while self._calls and not self.is_stopped:
            self.now_s, _, call, arguments = heapq.heappop(self._calls)
            call(*arguments)
