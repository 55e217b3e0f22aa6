"""Sections and plot of the performance pages on the comparison with other servers."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.report.pages import (
    GREY,
    INK,
    RED,
    PageSection,
    ResultFile,
    failures_cell,
    markdown_table,
    origin,
    read_result,
    save_figure,
    shown,
    svg_plots,
)

__all__ = ["PROCESSORS", "SECTIONS", "draw", "peers_table", "summary_table", "versions_table"]

PROCESSORS = ("zen4", "zen5")
"""AMD's processors that were measured."""
_LOADS = ("", "-390", "-avx2", "-avx2-390")
_FILES = {processor: [f"peers-{processor}{load}.json" for load in _LOADS] for processor in PROCESSORS}
_PLOTTED = "peers-zen4.json"
_PLOT = "performance-cpu.svg"
_NOT_COMPARED = ("click", "fastapi", "numpy", "typer", "uvicorn")
"""Pinned packages that the table omits because readers do not compare them; the results contain their versions."""


def summary_table(results: Path, processor: str) -> str:
    """Our service and the best peer with the same kind of precision, for each comparison on a processor."""
    rows = []
    for file in _FILES[processor]:
        if (results / file).exists():
            result = read_result(results, file)
            kinds = ((False, "float32"), (True, "bfloat16 or int8"))
            found = {kind: _summary(result, is_reduced) for is_reduced, kind in kinds}
            setup = (_instructions(result), f"{result['settings']['mean_pair_tokens']:.0f}")
            rows += [(*setup, kind, *cells) for kind, cells in found.items() if cells]
    heads = (
        *("instructions", "tokens per pair", "precision", "ours, CPU-s per 1,000 pairs", "best other server"),
        *("ours / other", "logit error: ours", "other", "wait: ours", "other"),
    )
    return markdown_table(heads, rows, num_names=3)


def _summary(result: ResultFile, is_reduced: bool) -> tuple[str, ...] | None:
    """Cells of a row; null if our service or every peer lacks figures."""
    measured = [one for one in result["contenders"] if one["figures"] and _is_reduced(one) == is_reduced]
    ours = min((one for one in measured if one["name"].startswith("ours")), key=_ratio, default=None)
    other = min((one for one in measured if not one["name"].startswith("ours")), key=_ratio, default=None)
    if ours is None or other is None:
        return None
    first, second = ours["figures"], other["figures"]
    return (
        f"{first['cpu_s_per_1k_pairs']:.1f} ({ours['name']})",
        f"{second['cpu_s_per_1k_pairs']:.1f} ({other['name']})",
        f"{_ratio(ours) / _ratio(other):.2f}",
        *(f"{figures['max_logit_error']:.1g}" for figures in (first, second)),
        *(shown(figures["wait_share"], ".2f") for figures in (first, second)),
    )


def _is_reduced(contender: ResultFile) -> bool:
    return bool(contender["precision"] != "float32")


def _instructions(result: ResultFile) -> str:
    sets = result["hardware"].get("instruction_sets", {"processor": (), "masks": {}})
    if sets["masks"]:
        return "AVX2 (masked)"
    return next((name for name in ("AVX-512", "AVX2") if name in sets["processor"]), "")


def peers_table(result: ResultFile) -> str:
    """Table of all contenders in order of CPU time, with unmeasured contenders at the end."""
    bare = statistics.median(row["cpu_s_per_1k_pairs"] for row in result["bare"])
    bare_pairs = statistics.median(row["pairs_per_s"] for row in result["bare"])
    rows = [("bare float32 forward pass, no server", f"{bare:.1f}", "1.00", "", f"{bare_pairs:.0f}", "", "", "0", "")]
    rows += [
        (f"its matrix products alone, in {precision}", f"{cpu_s:.1f}", f"{cpu_s / bare:.2f}", "", "", "", "", "", "")
        for precision, cpu_s in _products(result["bare"]).items()
    ]
    for contender in sorted(result["contenders"], key=_ratio):
        rows.append((_bold_ours(contender["name"]), *_peer_cells(contender)))
    heads = (
        "server",
        "CPU-s per 1,000 pairs",
        "ratio to bare",
        "share of peak",
        f"pairs/s, {result['settings']['num_clients']} clients",
        "p50 s, 1 client",
        "wait behind a large request",
        "logit error",
        "failures",
    )
    settings = result["settings"]
    rounds = f"{settings['num_rounds']} rounds"
    if any(one["figures"] and len(one["rounds"]) < settings["num_rounds"] for one in result["contenders"]):
        rounds += ", or one round of a server that is far behind"
    setup = (
        f"{settings['num_pairs']:,} pairs of {settings['mean_pair_tokens']:.0f} tokens on average; medians of "
        f"{rounds}; {settings['num_threads']} threads; logits range over {settings['logit_range']:.2g}."
    )
    return f"{markdown_table(heads, rows)}\n\n{setup} {origin(result)}"


def _products(bare: Sequence[ResultFile]) -> dict[str, float]:
    """Medians by precision; empty for results before 2026-11-26."""
    runs = [row["products_cpu_s_per_1k_pairs"] for row in bare if "products_cpu_s_per_1k_pairs" in row]
    return {precision: statistics.median(run[precision] for run in runs) for precision in (runs[0] if runs else ())}


def versions_table(result: ResultFile) -> str:
    """Table of each contender's versions, with remarks on its figures."""
    rows = []
    for contender in result["contenders"]:
        versions = ", ".join(
            f"{name} {number}" for name, number in contender["versions"].items() if name not in _NOT_COMPARED
        )
        remarks = [contender["note"], contender["error"] and f"not measured: {contender['error'].splitlines()[0]}"]
        rows.append((contender["name"], versions, "; ".join(filter(None, remarks))))
    return markdown_table(("server", "versions", "remarks"), rows, num_names=3)


SECTIONS: Mapping[str, PageSection] = {
    **{file.removesuffix(".json"): (file, peers_table) for files in _FILES.values() for file in files},
    "peers-versions": (_PLOTTED, versions_table),
    "peers-plot": (
        _PLOTTED,
        lambda _: f"![CPU time of each server relative to the bare forward pass](images/{_PLOT})",
    ),
}


def draw(results: Path, images: Path) -> None:
    """Writes the plot of the first comparison."""
    _draw_peers(read_result(results, _PLOTTED), images / _PLOT)


def _draw_peers(result: ResultFile, path: Path) -> None:
    """CPU time relative to the bare forward pass, one bar per server."""
    plt = svg_plots()
    measured = sorted((row for row in result["contenders"] if row["figures"]), key=_ratio, reverse=True)
    ratios = [_ratio(row) for row in measured]
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(measured) + 1.2), layout="constrained", facecolor="white")
    colours = [RED if row["name"].startswith("ours") else GREY for row in measured]
    bars = axes.barh([row["name"] for row in measured], ratios, height=0.68, color=colours)
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=4, color=INK)
    axes.vlines(1.0, -0.6, len(measured) - 0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(1.0, len(measured) - 0.45, "bare float32 forward", ha="center", va="bottom", color=INK, fontsize=9)
    axes.set_xlim(0, 1.12 * max([*ratios, 1.0]))
    axes.set_ylim(-0.6, len(measured))
    axes.set_xlabel("CPU time of the whole server per pair (bare forward pass = 1)")
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(plt.MultipleLocator(0.5))
    save_figure(figure, path)


def _peer_cells(contender: ResultFile) -> list[str]:
    figures = contender["figures"]
    if figures is None:
        return ["", "not measured", "", "", "", "", "", ""]
    return [
        f"{figures['cpu_s_per_1k_pairs']:.1f}",
        f"{figures['ratio_to_bare']:.2f}",
        shown(figures.get("peak_share"), ".2f"),  # absent in results before 2026-11-26
        f"{figures['pairs_per_s']:.0f}",
        f"{figures['p50_s']:.2f}",
        shown(figures["wait_share"], ".2f"),
        f"{figures['max_logit_error']:.1g}",
        failures_cell(figures["failures"]),
    ]


def _ratio(contender: ResultFile) -> float:
    return float(contender["figures"]["ratio_to_bare"]) if contender["figures"] else float("inf")


def _bold_ours(name: str) -> str:
    return f"**{name}**" if name.startswith("ours") else name
