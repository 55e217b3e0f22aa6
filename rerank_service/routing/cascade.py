"""Chooses the passages that go on to a cascade's next stage, and joins the stages' logits into one ranking.

`http/cascades.py` has the models rank. This module does not import Ray.
"""

import ctypes
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

from rerank_service.config import Keep, MarginConfig
from rerank_service.messages import Explanation, Ranked, rank_by_logit

__all__ = ["GAP", "ScoredStage", "StageSpeed", "joined", "keeps_all", "passages_to_keep"]

GAP = 1.0
"""Smallest distance, in logits, between the passages that went on and the best passage that a stage dropped."""

_NEWEST_SHARE = 0.2
"""Weight of the newest request in the moving averages of a stage's sizes and times."""
_MEMORY_S = 30.0
"""A measured time is used for this long. After that, the stage is tried again, however slow it was."""


class ScoredStage(NamedTuple):
    """The passages that a stage has scored, and their ranking."""

    indices: Sequence[int]
    """Index of each passage in the request, in ascending order."""
    ranked: Ranked
    """The ranking of these passages; its indices count the stage's passages."""


def keeps_all(keep: Keep | None, passages: Sequence[str]) -> bool:
    """Whether a stage keeps all of these passages, whatever their logits are."""
    return isinstance(keep, int) and len(set(passages)) <= keep


def passages_to_keep(keep: Keep, passages: Sequence[str], ranked: Ranked) -> list[int]:
    """Indices of the passages that go on to the next stage, in ascending order; at least one.

    Copies of a passage go on together and count once, because the next stage scores them once. Of two passages with
    equal logits, the first one goes on first.
    """
    logit_of: dict[str, float] = {}  # by passage, most relevant first
    for index in ranked.order:
        logit_of.setdefault(passages[index], ranked.logits[index])
    if isinstance(keep, MarginConfig):
        lowest = ranked.logits[ranked.order[0]] - keep.margin
        num_kept = sum(logit >= lowest for logit in logit_of.values())
        num_kept = min(num_kept, keep.at_most or num_kept)
    elif isinstance(keep, int):
        num_kept = keep
    else:
        num_kept = math.ceil(keep * len(logit_of) - 1e-9)  # 0.1 * 30 is slightly above 3
    kept = set(islice(logit_of, max(1, num_kept)))
    return [index for index, passage in enumerate(passages) if passage in kept]


def joined(stages: Sequence[ScoredStage], total_s: float) -> Ranked:
    """One ranking of all passages from the stages that have scored, in the order of the stages.

    The passages of the last stage keep their logits and come first. The passages that a stage dropped follow in their
    own order; `_lowered` moves their logits below those of all passages that went on. Raises `NonFiniteLogit` if
    float32 has no room below.
    """
    last = stages[-1]
    logits = dict(zip(last.indices, last.ranked.logits, strict=True))
    floor = min(last.ranked.logits)
    for stage, following in reversed(list(pairwise(stages))):
        went_on = set(following.indices)
        ranked = [(stage.indices[at], stage.ranked.logits[at]) for at in stage.ranked.order]
        dropped = [(index, logit) for index, logit in ranked if index not in went_on]
        if dropped:
            lowered = _lowered([logit for _, logit in dropped], floor)
            logits.update(zip((index for index, _ in dropped), lowered, strict=True))
            floor = lowered[-1]
    in_order = [logits[index] for index in range(len(logits))]
    rankings = [stage.ranked for stage in stages]
    return replace(
        last.ranked,
        order=rank_by_logit(in_order),
        logits=in_order,
        num_tokens=sum(ranked.num_tokens for ranked in rankings),
        # A stage knows only the number of its truncated passages, so passages of different stages cannot be told apart.
        num_truncated=max(ranked.num_truncated for ranked in rankings),
        num_unscored=max(ranked.num_unscored for ranked in rankings),
        num_shards=sum(ranked.num_shards for ranked in rankings),
        tokenise_s=sum(ranked.tokenise_s for ranked in rankings),
        queue_s=sum(ranked.queue_s for ranked in rankings),
        forward_s=sum(ranked.forward_s for ranked in rankings),
        total_s=total_s,
        matches=None,
        explanations=_in_request(last),
    )


def _lowered(logits: Sequence[float], floor: float) -> list[float]:
    """Moves a dropped group of passages down, so that the best is at least `GAP` below `floor`.

    `logits` are in descending order. All of them move by the same amount, or not at all if they are low enough. The
    results are float32 numbers: clients that read logits as float32 must see the same order. Where rounding would make
    two different logits equal, the lower logit takes the next float32 number below.
    """
    shift = min(0.0, floor - GAP - logits[0])
    lowered: list[float] = []
    before, limit = math.nan, floor
    for logit in logits:
        if logit != before:
            limit = min(ctypes.c_float(logit + shift).value, _next_below(limit))
        lowered.append(limit)
        before = logit
    return lowered


def _next_below(value: float) -> float:
    """The next float32 number below the float32 number that is nearest to `value`; -inf below the lowest one."""
    with np.errstate(over="ignore"):
        return float(np.nextafter(np.float32(value), np.float32(-math.inf)))


def _in_request(stage: ScoredStage) -> list[Explanation] | None:
    """The explanations, with the indices of the passages in the request."""
    if stage.ranked.explanations is None:
        return None
    return [replace(one, index=stage.indices[one.index]) for one in stage.ranked.explanations]


class StageSpeed:
    """How long a stage takes, as this ingress has measured it recently.

    The estimate is on the low side: a stage that could have finished in time must not be left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._mean_characters = self._mean_s = 0.0
        self._measured_at_s = -math.inf

    def add(self, num_characters: int, took_s: float) -> None:
        """Counts a request that the stage has scored, or that has used up its time."""
        weight = _NEWEST_SHARE if self._is_known() else 1.0
        self._mean_characters += weight * (num_characters - self._mean_characters)
        self._mean_s += weight * (took_s - self._mean_s)
        self._measured_at_s = self._clock()

    def expected_s(self, num_characters: int) -> float:
        """Expected time of the stage in seconds; 0 while it is unknown. A request above the mean size is expected to
        take the mean time, because the replicas may score it in parallel."""
        if not self._is_known():
            return 0.0
        return self._mean_s * min(1.0, num_characters / max(1.0, self._mean_characters))

    def _is_known(self) -> bool:
        return self._clock() - self._measured_at_s < _MEMORY_S
