"""What `rank` returns; knows neither HTTP nor where it comes from."""

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
    """Passage tokens in a window. Null: as many as fit beside the query."""
    overlap_tokens: int = 32
    """Tokens that consecutive windows share, at most half of `tokens`."""


@dataclass(frozen=True, slots=True)
class RankedPassage:
    """One passage's place."""

    index: int
    """Where it was among the passages asked about."""
    text: str
    logit: float
    """Raw and unbounded; higher is more relevant."""

    @property
    def probability(self) -> float:
        """`sigmoid(logit)`."""
        return math.exp(min(self.logit, 0.0)) / (1.0 + math.exp(-abs(self.logit)))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of all pairs, as the model saw them."""

    prompt_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True)
class Ranking(Sequence[RankedPassage]):
    """Passages by logit, the most relevant first; equal logits by index. A sequence of `RankedPassage`."""

    passages: tuple[RankedPassage, ...]
    usage: Usage
    request_id: str
    """Sent with every request of the call; the service's logs have it."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    """What the service says its stages took (`Server-Timing`); of several requests, the slowest one's."""
    num_truncated: int | None = None
    """Passages of which a part was not scored, whether or not they are among the `top_n`; null if the service does not
    tell."""
    num_unscored: int | None = None
    """Passages, among the truncated ones, of which nothing was scored because the query fills the model's window: their
    logits say nothing about them. Null if the service does not tell."""

    @overload
    def __getitem__(self, place: int) -> RankedPassage: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[RankedPassage, ...]: ...
    def __getitem__(self, place: int | slice) -> RankedPassage | tuple[RankedPassage, ...]:
        return self.passages[place]

    def __len__(self) -> int:
        return len(self.passages)
