"""How much work each caller has offered of late, which says how much more to expect. Pure: no clock, no thread."""

import heapq
import math

__all__ = ["Activity"]

_MEMORY_S = 8.0
"""After this long, a token counts for 1/e."""
_MAX_CALLERS = 500
"""Callers remembered. At twice as many, those that offered least are forgotten."""


class Activity:
    """Exponentially decayed counts of each caller's tokens."""

    def __init__(self) -> None:
        self._tokens: dict[str, float] = {}  # as of `_at_s`
        self._at_s = 0.0

    def add(self, caller: str, num_tokens: int, now_s: float) -> None:
        """Counts tokens that a caller offered."""
        self._decay(now_s)
        self._tokens[caller] = self._tokens.get(caller, 0.0) + num_tokens
        if len(self._tokens) > 2 * _MAX_CALLERS:
            self._tokens = dict(heapq.nlargest(_MAX_CALLERS, self._tokens.items(), key=lambda item: item[1]))

    def tokens_per_s(self, now_s: float) -> dict[str, float]:
        """The rate of each caller seen lately."""
        self._decay(now_s)
        return {caller: num_tokens / _MEMORY_S for caller, num_tokens in self._tokens.items()}

    def _decay(self, now_s: float) -> None:
        if now_s > self._at_s:
            factor = math.exp((self._at_s - now_s) / _MEMORY_S)
            self._at_s = now_s
            self._tokens = {caller: factor * num for caller, num in self._tokens.items() if factor * num > 1.0}
