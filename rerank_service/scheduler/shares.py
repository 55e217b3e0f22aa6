"""How far a device that callers share equally gets with each one's work. Pure arithmetic.

Generalised processor sharing (Parekh and Gallager, 1993): until a caller's first `w` tokens are scored, every other
caller gets as much, or all it has if that is less. A caller with little waiting is therefore delayed by what others
have only up to its own size, however many requests they have.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate

from rerank_service.scheduler.deadlines import Demand

__all__ = ["Shares"]


class Shares:
    """The device among callers with so many tokens waiting each."""

    def __init__(self, backlogs: Mapping[str, int]) -> None:
        self._backlogs = backlogs
        self._sorted = sorted(backlogs.values())
        self._sums = [0, *accumulate(self._sorted)]

    def tokens_until(self, caller: str, own_tokens: int) -> int:
        """Tokens of everybody that are scored by the time `own_tokens` of the caller's are."""
        num_smaller = bisect_left(self._sorted, own_tokens)
        in_all = self._sums[num_smaller] + own_tokens * (len(self._sorted) - num_smaller)
        return own_tokens + in_all - min(own_tokens, self._backlogs.get(caller, 0))

    def stretched(self, caller: str, demands: Iterable[Demand]) -> list[Demand]:
        """The caller's demands, in the order they are served in, with what others get meanwhile added to each."""
        own_tokens, so_far = 0, 0
        stretched: list[Demand] = []
        for demand in demands:
            own_tokens += demand.num_tokens
            until = self.tokens_until(caller, own_tokens)
            stretched.append(Demand(demand.deadline_s, until - so_far))
            so_far = until
        return stretched
