"""What arrives: requests of so many pairs of so many tokens, when they come. Knows nothing of what serves them."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rerank_service.tools.bench.workload import Lengths, draw_lengths

__all__ = ["Arrival", "Mix", "Phase", "arrivals", "body_kb"]

_DRAWN = 8192
"""Lengths drawn once for a distribution; requests take consecutive slices of them."""
_QUERY_TOKENS = 16
"""Of a query with the template around it, on top of a passage drawn from a distribution."""
_BYTES_PER_TOKEN = 4
_PASSAGE_BYTES = 12
"""JSON around one passage."""


class Arrival(NamedTuple):
    """One request."""

    at_s: float
    lengths: Sequence[int]
    """Tokens of each pair."""


class Phase(NamedTuple):
    """From when on how many requests come a second."""

    from_s: float
    rps: float


@dataclass(frozen=True)
class Mix:
    """What requests are made of."""

    passages: Mapping[int, float]
    """Passages of a request, and how often."""
    tokens: int | Lengths
    """Of every pair, with its query; or the distribution its passages come from."""

    def __post_init__(self) -> None:
        if not self.passages or min(self.passages) < 1 or min(self.passages.values()) <= 0:
            raise ValueError("a mix needs sizes from 1 and weights above 0")
        if not isinstance(self.tokens, Lengths) and self.tokens < 1:
            raise ValueError("a pair has at least one token")

    @property
    def mean_passages(self) -> float:
        """Of a request."""
        return sum(size * weight for size, weight in self.passages.items()) / sum(self.passages.values())

    @property
    def mean_tokens(self) -> float:
        """Of a pair."""
        pool = self.pool()
        return sum(pool) / len(pool)

    @property
    def attended_tokens(self) -> float:
        """Length of the pair that a token drawn at random is in: what its attention costs."""
        pool = self.pool()
        return sum(length * length for length in pool) / sum(pool)

    @property
    def request_tokens(self) -> float:
        """Mean of a request."""
        return self.mean_passages * self.mean_tokens

    @property
    def request_kb(self) -> float:
        """About how large a request's body is on average."""
        return body_kb(self.mean_passages, self.request_tokens)

    def pool(self) -> list[int]:
        """Lengths of pairs to draw from."""
        if isinstance(self.tokens, Lengths):
            return [length + _QUERY_TOKENS for length in draw_lengths(self.tokens, _DRAWN)]
        return [self.tokens]


def body_kb(num_passages: float, num_tokens: float) -> float:
    """About how large a request's body is."""
    return (num_tokens * _BYTES_PER_TOKEN + num_passages * _PASSAGE_BYTES) / 1000


def arrivals(mix: Mix, phases: Sequence[Phase], burstiness: float = 1.0, seed: int = 0) -> Iterator[Arrival]:
    """Requests without end; the same seed gives the same ones, however fast they come.

    `burstiness` is the squared coefficient of variation of the time between two: 1 is Poisson, more comes in bursts
    (hyperexponential with balanced means).
    """
    sizes, gaps = random.Random(f"sizes {seed}"), random.Random(f"gaps {seed}")  # noqa: S311 - a simulation
    draw = _PairSampler(mix, sizes)
    now_s, phase = 0.0, 0
    while True:
        while phase + 1 < len(phases) and phases[phase + 1].from_s <= now_s:
            phase += 1
        now_s += _gap(gaps, burstiness) / phases[phase].rps
        yield Arrival(now_s, draw())


class _PairSampler:
    """Draws the pairs of one request after the other."""

    def __init__(self, mix: Mix, rng: random.Random) -> None:
        self._sizes, self._weights = list(mix.passages), list(mix.passages.values())
        self._pool = mix.pool()
        self._rng = rng
        self._wrapped = self._pool * (2 + max(self._sizes) // len(self._pool))

    def __call__(self) -> Sequence[int]:
        size = self._sizes[0] if len(self._sizes) == 1 else self._rng.choices(self._sizes, self._weights)[0]
        start = self._rng.randrange(len(self._pool))
        return self._wrapped[start : start + size]


def _gap(rng: random.Random, burstiness: float) -> float:
    """With mean 1."""
    if burstiness <= 1:
        return rng.expovariate(1.0)
    share = (1 + math.sqrt((burstiness - 1) / (burstiness + 1))) / 2
    return rng.expovariate(2 * share) if rng.random() < share else rng.expovariate(2 * (1 - share))
