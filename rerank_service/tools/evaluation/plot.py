"""Plot of quality against speed, one point per model. Needs matplotlib, which the extra `tools` installs."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from rerank_service.tools.evaluation.evaluate import Evaluation
from rerank_service.tools.evaluation.measures import NDCG

__all__ = ["plot"]

_GREEN = "#76b900"
_INK = "#1a1a1a"
_GREY = "#8a8a8a"


def plot(evaluation: Evaluation, path: Path) -> None:
    """Writes the plot in the format that the suffix of `path` selects."""
    mpl.rcParams["svg.hashsalt"] = "rerank-service"
    canvas = Canvas(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    axes = canvas.subplots()
    first, *models = evaluation.models
    base = first.quality[NDCG]
    axes.axhspan(base.low, base.high, color=_GREY, alpha=0.12, linewidth=0)
    axes.axhline(base.mean, color=_GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(first.model, (0.99, base.mean), xycoords=("axes fraction", "data"), xytext=(0, 4),
                  textcoords="offset points", ha="right", color=_GREY, fontsize=9)  # fmt: skip
    for row in models:
        quality, speed = row.quality[NDCG], row.pairs_per_s
        assert speed is not None  # noqa: S101 - only the first stage has no speed
        error = [[quality.mean - quality.low], [quality.high - quality.mean]]
        axes.errorbar(speed, quality.mean, yerr=error, fmt="o", color=_GREEN, ecolor=_GREEN, elinewidth=1.4, capsize=3)
        axes.annotate(
            row.model, (speed, quality.mean), xytext=(8, 6), textcoords="offset points", color=_INK, fontsize=9
        )
    axes.set_xscale("log")
    axes.margins(x=0.35, y=0.15)
    axes.set_xlabel("pairs per second on this machine")
    axes.set_ylabel("nDCG@10, with 95% interval")
    axes.set_title(
        f"{evaluation.collection}: {evaluation.num_queries:,} queries, candidates {evaluation.candidates}",
        loc="left", fontsize=11, color=_INK,
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    canvas.savefig(path)
