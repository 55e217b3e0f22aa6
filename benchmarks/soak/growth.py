"""Criterion of the soak test: decides whether a figure grows during the run."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LIMITS", "Limit", "rise_over"]


@dataclass(frozen=True)
class Limit:
    """Allowed rise over the last two thirds of the run: an absolute value or a share, whichever is larger."""

    absolute: float
    share: float

    def allows(self, rise: float, level: float) -> bool:
        """Whether the rise is allowed; `level` is the value at the start of the line."""
        return rise <= max(self.absolute, self.share * level)


LIMITS = {"rss_mb": Limit(8.0, 0.02), "descriptors": Limit(4.0, 0.0), "series": Limit(60.0, 0.0)}
"""Allowed rise of each figure. Memory: allocators keep a few MB more or less at random. Descriptors: their number
depends on the open connections at the time of the sample. Series: the first reply with a new status can create as many
as 25; one series per invalid name would add a hundred per minute."""


def rise_over(at_s: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Start and rise of the least-squares line through the last two thirds of the samples."""
    first = len(values) // 3
    times, heights = at_s[first:], values[first:]
    mean_t, mean_h = sum(times) / len(times), sum(heights) / len(heights)
    spread = sum((t - mean_t) ** 2 for t in times)
    slope = sum((t - mean_t) * (h - mean_h) for t, h in zip(times, heights, strict=True)) / spread if spread else 0.0
    return mean_h + slope * (times[0] - mean_t), slope * (times[-1] - times[0])
