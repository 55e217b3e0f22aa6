"""Sections and plot of `docs/appendix/cascades.md`, made from the results of `benchmarks.cascade_study`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.cascade_study.curve import BM25, KEEPS, WHOLE
from benchmarks.report.pages import (
    GREY,
    INK,
    RED,
    PageSection,
    ResultFile,
    markdown_table,
    origin,
    read_result,
    save_figure,
    svg_plots,
)

__all__ = ["SECTIONS", "draw", "plans_table", "quality_table"]

_QUALITY, _PLANS = "cascade-quality.json", "cascade-plans.json"
_PLOT = "cascade-curve.svg"
_COLOURS = {"3 layers": RED, "2 layers": "#30638e", "1 layer": INK, BM25: GREY}
_SHOWN = (0.1, 0.3, 0.5)


def cost_share(result: ResultFile, first: str, keep: float) -> float:
    """CPU time of a cascade as a share of the whole model's. BM25's scores come with the candidates."""
    cpu_ms = result["cpu_ms_per_pair"]
    return float(cpu_ms.get(first, 0.0) / cpu_ms[WHOLE] + keep)


def quality_table(result: ResultFile) -> str:
    """Table of the difference from the whole model, and of the cost, by first stage and share kept."""
    rows = []
    for first in _COLOURS:
        cells = []
        for keep in _SHOWN:
            row = result["rows"][f"{first}, {keep}"]
            low, high = row["difference_interval"]
            share = cost_share(result, first, keep)
            cells.append(f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}] at {share:.0%}")
        rows.append((first, f"{result['rows'][first]['ndcg@10']:.3f}", *cells))
    rows.append((f"whole, {WHOLE}", f"{result['rows'][WHOLE]['ndcg@10']:.3f}", *[""] * len(_SHOWN)))
    heads = ("first stage", "alone", *(f"keeps {keep:.0%}" for keep in _SHOWN))
    sets = "; ".join(f"{one['label']} ({one['candidates']}, {one['pairs']:,} pairs)" for one in result["sets"])
    return f"{markdown_table(heads, rows)}\n\nSets: {sets}. {origin(result)}"


def plans_table(result: ResultFile) -> str:
    """Table of the simulated GPUs with and without a cascade, and of the computed cost."""
    rows = []
    for row in result["plans"]:
        load, plan = row["load"], row["plan"]
        first, last = plan["stages"]
        alone = "impossible" if plan["alone"] is None else f"{plan['alone']['replicas']:,}"
        flops = result["costs"]["flops_per_pair"]
        share = flops["1b"] / flops["4b"] + load["keep"] / load["passages"]
        rows.append(
            (
                f"{load['rps']:g} requests/s of {load['passages']} passages, p99 {1000 * load['p99_s']:,.0f} ms",
                str(load["keep"]),
                f"{share:.0%}",
                f"{first['replicas']} + {last['replicas']}",
                alone,
            )
        )
    heads = ("load", "kept by the 1B", "operations, share of the 4B's", "H100s: 1B + 4B", "4B alone")
    return f"{markdown_table(heads, rows)}\n\nPairs have {result['costs']['tokens']} tokens. {origin(result)}"


SECTIONS: Mapping[str, PageSection] = {
    "cascade-quality": (_QUALITY, quality_table),
    "cascade-plans": (_PLANS, plans_table),
    "cascade-plot": (_QUALITY, lambda _: f"![nDCG@10 lost, by the cost of the cascade](images/{_PLOT})"),
}


def draw(results: Path, images: Path) -> None:
    """Writes the plot of the page."""
    _draw_curve(read_result(results, _QUALITY), images / _PLOT)


def _draw_curve(result: ResultFile, path: Path) -> None:
    """nDCG@10 relative to the whole model, by the share of its cost; one line per first stage."""
    plt = svg_plots()
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained", facecolor="white")
    axes.axhline(0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    for first, colour in _COLOURS.items():
        shares: Sequence[float] = [100 * cost_share(result, first, keep) for keep in KEEPS]
        lost = [result["rows"][f"{first}, {keep}"]["difference"] for keep in KEEPS]
        axes.plot(shares, lost, color=colour, linewidth=2, marker="o", markersize=4)
        axes.annotate(first, (shares[-1], lost[-1]), (6, -3), textcoords="offset points", color=colour)
    axes.set_xlabel(f"cost, % of the whole model; each line keeps {', '.join(f'{keep:.0%}' for keep in KEEPS)}")
    axes.set_ylabel("nDCG@10, difference")
    axes.set_xlim(0, None)
    axes.margins(x=0.12)
    save_figure(figure, path)
