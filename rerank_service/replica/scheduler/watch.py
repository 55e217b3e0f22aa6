"""Notices work that never comes back. Pure: no clock of its own, no thread, no engine.

Time counts only as far as somebody looked: a process that was stopped (SIGSTOP, a suspended machine) and goes on finds
its clock ahead by minutes in which nothing could have been done.
"""

from dataclasses import dataclass

__all__ = ["Watch", "Work"]

_LONGEST_STEP_S = 10.0
"""Most that one look adds to what has passed; a replica is looked at every second (`replica.health_check_period_s`)."""


@dataclass(eq=False, slots=True)
class Work:
    """One call that is out."""

    limit_s: float
    seen_s: float | None = None
    """Time it has been out, from the first look at it; null before that."""


class Watch:
    """Calls that are out, and how long each has been. `begin` and `end` may be called from any thread."""

    def __init__(self) -> None:
        self._out: dict[Work, None] = {}
        self._last_look_s: float | None = None

    def begin(self, limit_s: float) -> Work:
        """A call goes out; after `limit_s` it counts as lost."""
        work = Work(limit_s)
        self._out[work] = None
        return work

    def end(self, work: Work) -> None:
        """It came back."""
        self._out.pop(work, None)

    def num_overdue(self, now_s: float) -> int:
        """How many are lost, as of this look."""
        step_s = 0.0 if self._last_look_s is None else min(max(0.0, now_s - self._last_look_s), _LONGEST_STEP_S)
        self._last_look_s = now_s
        out = list(self._out)
        for work in out:
            work.seen_s = 0.0 if work.seen_s is None else work.seen_s + step_s
        return sum(work.seen_s is not None and work.seen_s > work.limit_s for work in out)
