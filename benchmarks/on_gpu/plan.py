"""Which rows the GPU benchmark measures, the most important first, and which of them fit in its time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = [
    "AIMS",
    "FULL_QUEUE",
    "ONE_PAIR",
    "REQUEST",
    "Budget",
    "Extent",
    "Load",
    "Row",
    "Variant",
    "rows_of",
    "variants_of",
]

FULL_QUEUE = "full queue"
"""Batches of a long queue, as many in flight as in the service."""
REQUEST = "request of {}"
"""One request with this number of passages, alone on the device."""
ONE_PAIR = "one pair"
"""One pair of 128 tokens, alone on the device."""

AIMS = {("1b", "bfloat16"): 525, ("1b", "float8"): 750, ("4b", "bfloat16"): 165, ("4b", "float8"): 260}
"""Pairs of 512 tokens per second that a full queue on one H100 should reach. Estimated from counts of operations and
bytes, not measured."""

_BUDGET_S = {"1b": 270.0, "4b": 450.0}
"""Seconds for a model, so that the 1B takes less than five minutes and the 4B less than eight."""
_OTHER_BUDGET_S = 120.0
_ASSUMED_SHARE = 0.4
"""Share of the limit assumed for the duration of a row that has not been measured yet."""


@dataclass(frozen=True)
class Variant:
    """Settings of an engine."""

    dtype: str
    is_compiled: bool = True
    has_graphs: bool = True

    @property
    def name(self) -> str:
        """The settings as asked for. A row also says what the engine did."""
        parts = [self.dtype, "compiled" if self.is_compiled else "eager", *["graphs"] * self.has_graphs]
        return ", ".join(parts)


@dataclass(frozen=True)
class Load:
    """Pairs to score."""

    name: str
    num_tokens: int
    """Length of each pair."""
    num_pairs: int
    repeats: int
    """Timed runs, after one that warms up."""


@dataclass(frozen=True)
class Row:
    """A row of the table to be measured."""

    model: str
    variant: Variant
    load: Load

    def __str__(self) -> str:
        return f"{self.model}, {self.variant.name}, {self.load.name}, {self.load.num_tokens} tokens each"


def variants_of(device: str) -> tuple[Variant, ...]:
    """Variants in the order of importance; a CPU has no graphs and only emulates float8."""
    if not device.startswith("cuda"):
        return (Variant("bfloat16", is_compiled=False, has_graphs=False),)
    return (
        Variant("bfloat16"),
        Variant("float8"),
        Variant("bfloat16", is_compiled=False, has_graphs=False),
        Variant("float8", is_compiled=False, has_graphs=False),
        Variant("bfloat16", is_compiled=False),
    )


class Extent(NamedTuple):
    """How much each row scores."""

    queue_tokens: int
    num_passages: int
    repeats: int


def rows_of(model: str, variant: Variant, window_tokens: int, extent: Extent, *, is_first: bool) -> list[Row]:
    """Rows of a variant in the order of importance. Only the variants that a service would use get all rows."""
    lengths = [512, 128, 2048, 8192] if model != "4b" else [512, 128]
    lengths = [length for length in lengths if length <= window_tokens]
    queue_tokens, num_passages, repeats = extent
    full = [Load(FULL_QUEUE, length, max(2, queue_tokens // length), repeats) for length in lengths]
    requests = [Load(REQUEST.format(num_passages), length, num_passages, repeats) for length in lengths]
    one_pair = Load(ONE_PAIR, min(128, window_tokens), 1, 5 * repeats)
    if not (is_first or variant.is_compiled):
        return [Row(model, variant, load) for load in (full[0], requests[0], one_pair)]
    loads = [load for both in zip(full, requests, strict=True) for load in both]
    return [Row(model, variant, load) for load in (*loads[:2], one_pair, *loads[2:])]


@dataclass
class Budget:
    """The time for one model. A row starts only if it should end in time."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    skipped: list[str] = field(default_factory=list)
    """Rows that did not fit."""

    def __post_init__(self) -> None:
        self._started = self.clock()

    @classmethod
    def of_model(cls, model: str, seconds: float | None) -> "Budget":
        """The budget of a model, or `seconds`."""
        return cls(seconds or _BUDGET_S.get(model, _OTHER_BUDGET_S))

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return self.seconds - (self.clock() - self._started)

    def has_time_for(self, rows: Sequence[Row], expected_s: float) -> bool:
        """Whether `expected_s` fits; if not, lists the rows as skipped."""
        if expected_s <= self.left_s:
            return True
        self.skipped += [str(row) for row in rows]
        return False

    @staticmethod
    def expected_row_s(load: Load, least_s: float) -> float:
        """Estimated duration of a row whose run takes `least_s` at the limit, plus two seconds for its pairs."""
        return 2 + (load.repeats + 1) * least_s / _ASSUMED_SHARE
