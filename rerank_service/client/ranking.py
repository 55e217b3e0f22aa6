"""The values that `rank` takes and returns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from .explanation import Explanation

__all__ = ["PassageWindows", "RankedPassage", "Ranking", "Usage"]


@dataclass(frozen=True, slots=True)
class PassageWindows:
    """Options for scoring a long passage in overlapping windows. The best window's logit is the passage's logit."""

    max_per_passage: int
    """Maximum number of windows. Text beyond the last window is truncated; with `truncate="NONE"`, the service refuses
    the request instead."""
    tokens: int | None = None
    """Passage tokens per window. None: as many as fit next to the query."""
    overlap_tokens: int = 32
    """Tokens that two consecutive windows share, at most half of `tokens`."""


@dataclass(frozen=True, slots=True)
class RankedPassage:
    """One passage of a ranking."""

    index: int
    """Position in the list passed to `rank`."""
    text: str
    logit: float
    """Raw relevance score, unbounded; higher is more relevant."""
    explanation: Explanation | None = None
    """Present for the `explain` best passages of a call."""

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
    """A sequence of `RankedPassage` by descending logit. Passages with equal logits are in the order of their
    indices."""

    passages: tuple[RankedPassage, ...]
    usage: Usage
    request_id: str
    """Id sent with every request of the call and logged by the service."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    """Duration of each stage in the service (`Server-Timing`). If the call sent several requests, these are the
    durations of the slowest request."""
    num_truncated: int | None = None
    """Number of truncated passages among all passages of the call, not only among the `top_n`. None if the service does
    not report it."""
    num_unscored: int | None = None
    """Number of passages of which no token was scored, because the query fills the model's window. Their logits are
    meaningless. None if the service does not report it."""
    stages: Mapping[str, int] = field(default_factory=dict)
    """If the model is a cascade: the number of passages that each stage has scored, by the model's id. 0: the stage was
    left out. Empty for other models."""

    @overload
    def __getitem__(self, place: int) -> RankedPassage: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[RankedPassage, ...]: ...
    def __getitem__(self, place: int | slice) -> RankedPassage | tuple[RankedPassage, ...]:
        return self.passages[place]

    def __len__(self) -> int:
        return len(self.passages)
