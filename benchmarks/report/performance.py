"""Sections and plots of `docs/performance.md`."""

from collections.abc import Mapping
from pathlib import Path

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

__all__ = ["SECTIONS", "draw", "engine_table", "peers_table", "service_table", "versions_table"]

_PEERS_PLOT, _STEP_PLOT = "performance-cpu.svg", "step.svg"
_NOT_COMPARED = ("click", "fastapi", "numpy", "typer", "uvicorn")
"""Pinned packages that the table omits because readers do not compare them; the results contain their versions."""


def engine_table(result: ResultFile) -> str:
    """Table of every engine, compared with the bare forward pass of its weights."""
    rows = [
        (
            row["engine"].replace("_", " "),
            row["lengths"],
            row["dtype"],
            f"{row['cpu_s_per_1k_pairs']:.1f}",
            f"{row['bare_cpu_s_per_1k_pairs']:.1f}",
            f"{row['ratio_to_bare']:.2f}",
            f"{row['pairs_per_s']:.0f}",
            f"{row['max_logit_error']:.2g}",
        )
        for row in result["results"]
    ]
    heads = (
        "engine",
        "passages",
        "precision",
        "CPU-s per 1,000 pairs",
        "bare float32",
        "ratio",
        "pairs/s",
        "logit error",
    )
    return f"{markdown_table(heads, rows, num_names=3)}\n\n{origin(result)}"


def service_table(result: ResultFile) -> str:
    """Table of the service's figures under each load."""
    results = result["results"]
    rows = []
    for name, load in results["loads"].items():
        percentiles = [_shown(load[f"p{percentile}_s"], ".2f") for percentile in (50, 95, 99)]
        cpu_s = _shown(load["cpu_s_per_1k_passages"], ".1f")
        rows.append((name, *percentiles, f"{load['passages_per_s']:.0f}", cpu_s, _failures(load["failures"])))
    heads = ("load", "p50 s", "p95 s", "p99 s", "passages/s", "CPU-s per 1,000 passages", "failures")
    return f"{markdown_table(heads, rows)}\n\n{_probe(results)}\n\n{origin(result)}"


def _probe(results: ResultFile) -> str:
    share = results["wait_share"]
    if share is None:
        return "The 300-passage request finished before the 1-passage request was sent, so no wait was measured."
    return (
        f"A 1-passage request takes {results['small_alone_s']:.2f} s on an idle service and "
        f"{results['small_behind_big_s']:.2f} s behind a 300-passage request: its wait is {share:.2f} of the "
        f"{results['big_s']:.2f} s that the large request takes."
    )


def peers_table(result: ResultFile) -> str:
    """Table of all contenders in order of CPU time, with unmeasured contenders at the end."""
    bare = sorted(row["cpu_s_per_1k_pairs"] for row in result["bare"])[len(result["bare"]) // 2]
    bare_pairs = sorted(row["pairs_per_s"] for row in result["bare"])[len(result["bare"]) // 2]
    rows = [("bare float32 forward pass, no server", f"{bare:.1f}", "1.00", f"{bare_pairs:.0f}", "", "", "0", "")]
    for contender in sorted(result["contenders"], key=_ratio):
        rows.append((_bold_ours(contender["name"]), *_peer_cells(contender)))
    heads = (
        "server",
        "CPU-s per 1,000 pairs",
        "ratio to bare",
        f"pairs/s, {result['settings']['num_clients']} clients",
        "p50 s, 1 client",
        "wait behind a large request",
        "logit error",
        "failures",
    )
    settings = result["settings"]
    setup = (
        f"{settings['num_pairs']:,} pairs of {settings['mean_pair_tokens']:.0f} tokens on average; medians of "
        f"{settings['num_rounds']} rounds; {settings['num_threads']} threads; logits range over "
        f"{settings['logit_range']:.2g}."
    )
    return f"{markdown_table(heads, rows)}\n\n{setup} {origin(result)}"


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


def overhead_table(result: ResultFile) -> str:
    """Table of the service's own cost, measured with a null engine, by proxy."""
    rows = [
        (
            front,
            f"{row['cpu_ms']:.1f}",
            f"{row['requests_per_s']:.0f}",
            f"{row['p50_ms']:.0f}",
            f"{row['idle_cpus']:.2f}",
        )
        for front, row in result["results"].items()
    ]
    heads = ("proxy", "CPU-ms per request", "requests/s", "p50 ms, 32 clients", "CPUs when idle")
    return f"{markdown_table(heads, rows)}\n\n{origin(result)}"


def scaling_table(result: ResultFile) -> str:
    """Table of the throughput as a share of device throughput, by number of replicas."""
    rows = [
        (str(row["replicas"]), f"{row['tokens_per_s']:,.0f}", f"{row['efficiency']:.3f}", _outcomes(row["outcomes"]))
        for row in result["results"]
    ]
    heads = ("replicas", "tokens/s", "share of device throughput", "answers")
    return f"{markdown_table(heads, rows)}\n\n{origin(result)}"


def router_table(result: ResultFile) -> str:
    """Table of the latency with each request router, one row per round."""
    percentiles = ("p50_s", "p95_s", "p99_s")
    rows = [
        (row["router"], *(f"{row[name]:.2f}" for name in percentiles), _outcomes(row["outcomes"]))
        for row in result["results"]
    ]
    return f"{markdown_table(('router', 'p50 s', 'p95 s', 'p99 s', 'answers'), rows)}\n\n{origin(result)}"


def overload_table(result: ResultFile) -> str:
    """Table of a run at three times the capacity."""
    figures = result["results"]
    rows = [
        ("capacity, tokens/s", f"{figures['capacity_tokens_per_s']:,.0f}"),
        ("offered, tokens/s", f"{figures['offered_tokens_per_s']:,.0f}"),
        ("answered within the limit, tokens/s", f"{figures['goodput_tokens_per_s']:,.0f}"),
        ("share of capacity", f"{figures['goodput_share']:.2f}"),
        ("answers", _outcomes(figures["outcomes"])),
        (f"slowest answer, limit {figures['deadline_s']:g} s", f"{figures['accepted_longest_s']:.1f} s"),
        ("time to a refusal, p99", f"{1000 * figures['refused_p99_s']:.0f} ms"),
    ]
    return f"{markdown_table(('figure', 'value'), rows)}\n\n{origin(result)}"


def step_table(result: ResultFile) -> str:
    """Table of the times until replicas were added and removed."""
    figures = result["results"]
    rows = [
        ("from the step until four replicas are ready", _seconds(figures["full_after_s"])),
        ("from the end of the load until one replica remains", _seconds(figures["one_after_s"])),
        ("answers", _outcomes(figures["outcomes"])),
    ]
    return f"{markdown_table(('figure', 'value'), rows)}\n\n{origin(result)}"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def _outcomes(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())


SECTIONS: Mapping[str, PageSection] = {
    "engine": ("engine-cpu.json", engine_table),
    "service": ("service-cpu.json", service_table),
    "peers": ("peers-cpu.json", peers_table),
    "peers-versions": ("peers-cpu.json", versions_table),
    "stack-overhead": ("stack-overhead.json", overhead_table),
    "stack-scaling": ("stack-scaling.json", scaling_table),
    "stack-router": ("stack-router.json", router_table),
    "stack-overload": ("stack-overload.json", overload_table),
    "stack-step": ("stack-step.json", step_table),
    "stack-step-plot": (
        "stack-step.json",
        lambda _: f"![replicas and answers under a step of load](images/{_STEP_PLOT})",
    ),
    "peers-plot": (
        "peers-cpu.json",
        lambda _: f"![CPU time of each server relative to the bare forward pass](images/{_PEERS_PLOT})",
    ),
}


def draw(results: Path, images: Path) -> None:
    """Writes the plots of the page."""
    _draw_peers(read_result(results, "peers-cpu.json"), images / _PEERS_PLOT)
    _draw_step(read_result(results, "stack-step.json"), images / _STEP_PLOT)


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
    axes.set_xlabel("CPU-seconds of the whole server per pair, relative to the bare forward pass (less is better)")
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(plt.MultipleLocator(0.5))
    save_figure(figure, path)


def _draw_step(result: ResultFile, path: Path) -> None:
    """Ready replicas and answered tokens, one point per second."""
    plt = svg_plots()
    figures = result["results"]
    seconds = range(len(figures["replicas"]))
    answered = [sum(figures["answered_tokens_per_s"][max(0, at - 2) : at + 1]) / 3000 for at in seconds]
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(8, 3.6), layout="constrained", facecolor="white")
    above.step(seconds, figures["replicas"], where="post", color=RED, linewidth=2)
    above.set_ylabel("ready replicas")
    above.set_ylim(0, 4.6)
    below.plot(seconds, answered, color=INK, linewidth=1.5)
    below.set_ylabel("1,000 tokens/s")
    below.set_ylim(0, None)
    below.set_xlabel("seconds")
    for axes in (above, below):
        axes.axvspan(figures["step_at_s"], figures["end_at_s"], color=GREY, alpha=0.15, linewidth=0)
    save_figure(figure, path)


def _peer_cells(contender: ResultFile) -> list[str]:
    figures = contender["figures"]
    if figures is None:
        return ["", "not measured", "", "", "", "", ""]
    return [
        f"{figures['cpu_s_per_1k_pairs']:.1f}",
        f"{figures['ratio_to_bare']:.2f}",
        f"{figures['pairs_per_s']:.0f}",
        f"{figures['p50_s']:.2f}",
        _shown(figures["wait_share"], ".2f"),
        f"{figures['max_logit_error']:.1g}",
        _failures(figures["failures"]),
    ]


def _ratio(contender: ResultFile) -> float:
    return float(contender["figures"]["ratio_to_bare"]) if contender["figures"] else float("inf")


def _bold_ours(name: str) -> str:
    return f"**{name}**" if name.startswith("ours") else name


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _failures(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in failures.items()) or "none"
