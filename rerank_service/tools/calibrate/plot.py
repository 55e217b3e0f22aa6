"""Reliability plot of probabilities before and after calibration. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from rerank_service.tools.calibrate.calibrate import Calibrated
from rerank_service.tools.calibrate.measures import Bin

__all__ = ["plot"]

_GREEN = "#4a7500"
_GREY = "#8a8a8a"
_INK = "#1a1a1a"


def plot(result: Calibrated, title: str, path: Path) -> None:
    """Writes the plot in the format that the suffix of `path` selects."""
    mpl.rcParams["svg.hashsalt"] = "rerank-service"
    canvas = Canvas(figsize=(6.4, 6.4), dpi=150, layout="constrained")
    upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=(0, (4, 3)))
    upper.annotate("perfect", (0.9, 0.9), xytext=(4, -12), textcoords="offset points", color=_GREY, fontsize=9)
    series = (("sigmoid", _GREY, "s", result.sigmoid_bins), ("calibrated", _GREEN, "o", result.calibrated_bins))
    for name, colour, marker, bins in series:
        error = (result.sigmoid if name == "sigmoid" else result.calibrated)["calibration error"].mean
        x, y = [one.probability for one in bins], [one.relevant for one in bins]
        upper.plot(x, y, marker + "-", color=colour, linewidth=1.4, label=f"{name}: calibration error {error:.3f}")
        lower.step(*_outline(bins), where="mid", color=colour, linewidth=1.4)
    upper.set_ylabel("share of relevant passages")
    upper.set_xlim(0, 1)
    upper.set_ylim(-0.02, 1.02)
    upper.legend(frameon=False, loc="upper left")
    upper.set_title(title, loc="left", fontsize=11, color=_INK)
    lower.set_yscale("log")
    lower.set_ylabel("pairs")
    lower.set_xlabel("probability (mean of each tenth)")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    canvas.savefig(path)


def _outline(bins: Sequence[Bin]) -> tuple[list[float], list[int]]:
    return [one.probability for one in bins], [one.num_pairs for one in bins]
