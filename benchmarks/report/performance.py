"""Sections of the performance pages on the engines, the service and its stack, and the plot of a step in load."""

from collections.abc import Mapping
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

__all__ = ["SECTIONS", "draw", "engine_table", "service_table"]

_STEP_PLOT = "step.svg"


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
        percentiles = [shown(load[f"p{percentile}_s"], ".2f") for percentile in (50, 95, 99)]
        cpu_s = shown(load["cpu_s_per_1k_passages"], ".1f")
        rows.append((name, *percentiles, f"{load['passages_per_s']:.0f}", cpu_s, failures_cell(load["failures"])))
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
    "stack-overhead": ("stack-overhead.json", overhead_table),
    "stack-scaling": ("stack-scaling.json", scaling_table),
    "stack-router": ("stack-router.json", router_table),
    "stack-overload": ("stack-overload.json", overload_table),
    "stack-step": ("stack-step.json", step_table),
    "stack-step-plot": (
        "stack-step.json",
        lambda _: f"![replicas and answers under a step of load](images/{_STEP_PLOT})",
    ),
}


def draw(results: Path, images: Path) -> None:
    """Writes the plot of the page's last section; `peers.py` draws the others."""
    _draw_step(read_result(results, "stack-step.json"), images / _STEP_PLOT)


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
