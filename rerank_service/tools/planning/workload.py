"""Simulated arrivals: when requests arrive, how many pairs they contain, and how long the pairs are."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rerank_service.tools.bench.workload import Lengths, draw_lengths

__all__ = ["MAX_TOKENS", "Arrival", "Mix", "Phase", "arrivals", "body_kb"]

MAX_TOKENS = 1_000_000
"""Maximum number of tokens of a pair; more than any model accepts."""
_DRAWN = 8192
"""Number of lengths drawn from a distribution; each request takes a slice of consecutive lengths."""
_QUERY_TOKENS = 16
"""Tokens of query and template, which are added to passage lengths drawn from a distribution."""
_BYTES_PER_TOKEN = 4
_PASSAGE_BYTES = 12
"""JSON syntax around one passage."""


class Arrival(NamedTuple):
    """A request and the time at which it arrives."""

    at_s: float
    lengths: Sequence[int]
    """Tokens of each pair."""


class Phase(NamedTuple):
    """Request rate from a given time."""

    from_s: float
    rps: float


@dataclass(frozen=True)
class Mix:
    """Sizes of requests and lengths of pairs."""

    passages: Mapping[int, float]
    """Weight of each number of passages per request."""
    tokens: int | Lengths
    """Tokens of every pair, including the query, or a distribution of passage lengths."""

    def __post_init__(self) -> None:
        if not self.passages or min(self.passages) < 1 or not all(0 < one < math.inf for one in self.passages.values()):
            raise ValueError("a mix needs sizes of at least 1 and finite weights above 0")
        if not isinstance(self.tokens, Lengths) and not 1 <= self.tokens <= MAX_TOKENS:
            raise ValueError(f"a pair has 1 to {MAX_TOKENS:,} tokens")

    @property
    def mean_passages(self) -> float:
        """Mean number of passages per request."""
        return sum(size * weight for size, weight in self.passages.items()) / sum(self.passages.values())

    @property
    def mean_tokens(self) -> float:
        """Mean number of tokens per pair."""
        pool = self.pool()
        return sum(pool) / len(pool)

    @property
    def attended_tokens(self) -> float:
        """Mean length of the pair that contains a random token. The cost of attention depends on this mean."""
        pool = self.pool()
        return sum(length * length for length in pool) / sum(pool)

    @property
    def request_tokens(self) -> float:
        """Mean number of tokens per request."""
        return self.mean_passages * self.mean_tokens

    @property
    def request_kb(self) -> float:
        """Approximate mean size of a request body."""
        return body_kb(self.mean_passages, self.request_tokens)

    def pool(self) -> list[int]:
        """Pair lengths to draw from."""
        if isinstance(self.tokens, Lengths):
            return [length + _QUERY_TOKENS for length in draw_lengths(self.tokens, _DRAWN)]
        return [self.tokens]


def body_kb(num_passages: float, num_tokens: float) -> float:
    """Approximate size of a request body."""
    return (num_tokens * _BYTES_PER_TOKEN + num_passages * _PASSAGE_BYTES) / 1000


def arrivals(mix: Mix, phases: Sequence[Phase], burstiness: float = 1.0, seed: int = 0) -> Iterator[Arrival]:
    """An endless sequence of requests. The same seed gives the same requests at any rate.

    `burstiness` is the squared coefficient of variation of the time between requests. 1 is a Poisson process; above 1,
    the gaps have a hyperexponential distribution with balanced means.
    """
    size_rng, gap_rng = random.Random(f"sizes {seed}"), random.Random(f"gaps {seed}")  # noqa: S311 - a simulation
    sizes, weights, pool = list(mix.passages), list(mix.passages.values()), mix.pool()
    repeated = pool * (2 + max(sizes) // len(pool))  # long enough for a slice from any start index
    now_s, phase = 0.0, 0
    while True:
        while phase + 1 < len(phases) and phases[phase + 1].from_s <= now_s:
            phase += 1
        now_s += _gap(gap_rng, burstiness) / phases[phase].rps
        size = sizes[0] if len(sizes) == 1 else size_rng.choices(sizes, weights)[0]
        start = size_rng.randrange(len(pool))
        yield Arrival(now_s, repeated[start : start + size])


def _gap(rng: random.Random, burstiness: float) -> float:
    """A gap between two requests, with mean 1."""
    if burstiness <= 1:
        return rng.expovariate(1.0)
    share = (1 + math.sqrt((burstiness - 1) / (burstiness + 1))) / 2
    return rng.expovariate(2 * share) if rng.random() < share else rng.expovariate(2 * (1 - share))
