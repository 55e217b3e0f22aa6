"""The map from a model's logits to probabilities, in the form that the configuration and `rerank-service calibrate`
share.

Evaluating the map needs neither numpy nor scikit-learn, because the service evaluates it for every answered passage.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import from_json

from rerank_service.config.section import Section

__all__ = ["MAX_POINTS", "CalibrationConfig", "CalibrationOrPath", "Probability", "log_odds_of", "sigmoid"]

Probability = Callable[[float], float]
"""Turns a logit into a probability."""

MAX_POINTS = 200
_MAX_FILE_BYTES = 65_536
_MAX_MAGNITUDE = 1e6  # keeps every product and sum below finite
_Point = tuple[Annotated[float, Field(ge=-_MAX_MAGNITUDE, le=_MAX_MAGNITUDE)], Annotated[float, Field(gt=0, lt=1)]]


def sigmoid(logit: float) -> float:
    """The logistic function, in a form in which `exp` cannot overflow."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    grown = math.exp(logit)
    return grown / (1 + grown)


def log_odds_of(probability: float) -> float:
    """The inverse of `sigmoid`."""
    return math.log(probability) - math.log1p(-probability)


class CalibrationConfig(Section):
    """A strictly increasing map from logits to probabilities, which `rerank-service calibrate` measures.

    Between two points, the log-odds are interpolated linearly. One point and a slope are Platt's logistic function.
    `points: [[0, 0.5]]` is the plain logistic function.
    """

    points: Annotated[tuple[_Point, ...], Field(min_length=1, max_length=MAX_POINTS)]
    """Pairs of a logit and its probability, which is above 0 and below 1. Both increase from point to point."""

    slope: Annotated[float, Field(gt=0, le=_MAX_MAGNITUDE)] = 1.0
    """Increase of the log-odds per logit, below the first point and above the last."""

    origin: Annotated[str, Field(max_length=1000)] = ""
    """How the map was made, for people to read. `/v1/models` returns it."""

    @model_validator(mode="after")
    def _points_increase(self) -> Self:
        for number, (first, second) in enumerate(pairwise(self.points), start=1):
            if not (first[0] < second[0] and first[1] < second[1]):
                raise ValueError(
                    f"points[{number}] {list(second)} must have a higher logit and a higher probability than "
                    f"points[{number - 1}] {list(first)}"
                )
        return self

    @cached_property
    def _knots(self) -> tuple[list[float], list[float]]:
        """The points' logits, and their log-odds."""
        return [logit for logit, _ in self.points], [log_odds_of(probability) for _, probability in self.points]

    def probability(self, logit: float) -> float:
        """The probability that a passage with this logit is relevant."""
        logits, log_odds = self._knots
        after = bisect_right(logits, logit)
        if after == 0:
            return sigmoid(log_odds[0] + self.slope * (logit - logits[0]))
        if after == len(logits):
            return sigmoid(log_odds[-1] + self.slope * (logit - logits[-1]))
        share = (logit - logits[after - 1]) / (logits[after] - logits[after - 1])
        # The last bit of the sum may exceed the next point.
        return sigmoid(min(log_odds[after - 1] + share * (log_odds[after] - log_odds[after - 1]), log_odds[after]))

    def logit_at(self, probability: float) -> float:
        """The logit of a passage with this probability: the inverse of `probability`."""
        logits, log_odds = self._knots
        wanted = log_odds_of(probability)
        after = bisect_right(log_odds, wanted)
        if after == 0:
            return logits[0] + (wanted - log_odds[0]) / self.slope
        if after == len(logits):
            return logits[-1] + (wanted - log_odds[-1]) / self.slope
        share = (wanted - log_odds[after - 1]) / (log_odds[after] - log_odds[after - 1])
        return logits[after - 1] + share * (logits[after] - logits[after - 1])


def _read_file(value: Any) -> Any:
    """The content of a file with a map; any other value unchanged. Messages do not quote the file."""
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"must be a map, or a file that can be read ({error.strerror or error})") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise ValueError(f"must be a file of at most {_MAX_FILE_BYTES:,} bytes")
    try:
        return from_json(raw)
    except ValueError as error:
        raise ValueError(f"must be a file with valid JSON ({error})") from None


CalibrationOrPath = Annotated[
    CalibrationConfig | None, BeforeValidator(_read_file, json_schema_input_type=CalibrationConfig | str | None)
]
"""A map, or the path of a JSON file with a map. The file is read when the configuration is validated."""
