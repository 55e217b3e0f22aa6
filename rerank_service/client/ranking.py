"""The values that `rank` takes and returns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

__all__ = ["PassageWindows", "RankedPassage", "Ranking", "Usage"]


@dataclass(frozen=True, slots=True)
class PassageWindows:
    """Scores a long passage in overlapping windows; its logit is the best window's."""

    max_per_passage: int
    """Text beyond this many windows is truncated, or refused with `truncate="NONE"`."""
    tokens: int | None = None
    """Passage tokens in a window. None: as many as fit beside the query."""
    overlap_tokens: int = 32
    """Tokens that consecutive windows share, at most half of `tokens`."""


@dataclass(frozen=True, slots=True)
class RankedPassage:
    """One passage of a ranking."""

    index: int
    """Position in the list passed to `rank`."""
    text: str
    logit: float
    """Raw and unbounded; higher is more relevant."""

    @property
    def probability(self) -> float:
        """`sigmoid(logit)`."""
        return math.exp(min(self.logit, 0.0)) / (1.0 + math.exp(-abs(self.logit)))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of all pairs after templating and truncation."""

    prompt_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True)
class Ranking(Sequence[RankedPassage]):
    """Passages by descending logit; equal logits by index. A sequence of `RankedPassage`."""

    passages: tuple[RankedPassage, ...]
    usage: Usage
    request_id: str
    """Sent with every request of the call and logged by the service."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    """Duration of each stage in the service (`Server-Timing`); of several requests, those of the slowest."""
    num_truncated: int | None = None
    """Passages that were truncated, in the whole request and not only the `top_n`. None if the service does not say."""
    num_unscored: int | None = None
    """Truncated passages of which no token was scored, because the query fills the model's window: their logits are
    meaningless. None if the service does not say."""

    @overload
    def __getitem__(self, place: int) -> RankedPassage: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[RankedPassage, ...]: ...
    def __getitem__(self, place: int | slice) -> RankedPassage | tuple[RankedPassage, ...]:
        return self.passages[place]

    def __len__(self) -> int:
        return len(self.passages)
