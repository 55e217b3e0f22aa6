"""Whether work with deadlines can be done in time, and which of it must go first. Pure arithmetic.

Earliest deadline first is optimal on one device (Liu and Layland, 1973): if it misses a deadline, any order does. So a
newcomer is taken only if with it this order would still keep every deadline, and while some deadline is near, the queue
follows it; the rest of the time requests share the device fairly.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["PROMISED", "Demand", "Lateness", "lateness", "urgent"]

PROMISED = 0.8
"""Share of its time in which a newcomer must be done: the rest is for a speed that was overrated."""
_PROTECTED = 0.9
"""Share of their time into which newcomers may push those behind them; beyond it, these must go first."""


class Demand(NamedTuple):
    """Work of one request."""

    deadline_s: float
    """On the caller's clock; infinite where there is none."""
    num_tokens: int


class Lateness(NamedTuple):
    """Why a newcomer is not taken: work that would be done after `expected_s`, with `time_s` left to its deadline."""

    expected_s: float
    time_s: float
    reserve_s: float
    """The part of `time_s` that must not be planned."""
    is_another: bool
    """Whether that work is not the newcomer's but another's, accepted before, whose deadline comes later."""


def lateness(
    newcomer: Demand, others: Sequence[Demand], busy_tokens: int, now_s: float, tokens_per_s: float, bonus: float = 0.0
) -> Lateness | None:
    """What would be late if the newcomer were taken: itself, or one behind it; null if nothing would.

    `busy_tokens` go before them all: what is on the device, and the batch that each of them ends in. One that is
    late already keeps nobody out. `bonus` raises the share of the newcomer's time that may be planned, and half of it
    that of the others' time.
    """
    promised, protected = PROMISED + bonus, _PROTECTED + bonus / 2
    before = sum(other.num_tokens for other in others if other.deadline_s <= newcomer.deadline_s)
    behind = sorted(other for other in others if other.deadline_s > newcomer.deadline_s)
    own_s = newcomer.num_tokens / tokens_per_s
    done_s = (busy_tokens + before) / tokens_per_s + own_s
    time_s = newcomer.deadline_s - now_s
    if done_s > promised * time_s:
        return Lateness(done_s, time_s, (1 - promised) * time_s, is_another=False)
    for other in behind:
        done_s += other.num_tokens / tokens_per_s
        time_s = other.deadline_s - now_s
        if done_s > protected * time_s and done_s - own_s <= time_s:
            return Lateness(done_s, time_s, (1 - protected) * time_s, is_another=True)
    return None


def urgent(by_deadline: Sequence[Demand], batch_tokens: int, now_s: float, tokens_per_s: float) -> list[int]:
    """Positions of those that must go first, in this order; usually none. `by_deadline` has the earliest first.

    Who does not go now waits for a batch of `batch_tokens`, and is done when the batch is that it ends in. Where not
    all can be in time any more, the longest ones are given up for the sake of the others (Moore, 1968): they wait for
    what is left of the device.
    """
    kept: list[int] = []
    batch_s = batch_tokens / tokens_per_s
    done_s = 0.0
    num_urgent = 0
    for position, demand in enumerate(by_deadline):
        kept.append(position)
        done_s += demand.num_tokens / tokens_per_s
        time_s = demand.deadline_s - now_s
        if done_s > time_s:
            given_up = max(kept, key=lambda one: by_deadline[one].num_tokens)
            kept.remove(given_up)
            done_s -= by_deadline[given_up].num_tokens / tokens_per_s
            num_urgent = len(kept)
        elif done_s + 2 * batch_s > _PROTECTED * time_s:
            num_urgent = len(kept)
    return kept[:num_urgent]
