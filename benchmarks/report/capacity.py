"""Sections and plots of `docs/capacity.md`, made from the results of `benchmarks.simulate_cluster`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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

__all__ = ["SECTIONS", "draw"]

_BLUE = "#30638e"
_VALIDATION, _TABLES, _LIMITS = "plan-validation.json", "plan-tables.json", "plan-limits.json"
_CELLS = "plan-cells.json"


def validation_table(result: ResultFile) -> str:
    """Table of measured and simulated figures."""

    def cell(figure: Mapping[str, float], form: str) -> str:
        return f"{figure['measured']:{form}} / {figure['simulated']:{form}} ({figure['ratio']:.2f})"

    rows = [
        (
            str(row["replicas"]),
            cell(row["tokens_per_s"], ",.0f"),
            *(cell(row[name], ".3f") for name in ("p50_s", "p95_s", "p99_s")),
            str(row["requests"]),
        )
        for row in result["results"]["rows"]
    ]
    router = result["results"]["router"]
    cells = (cell(router[name], ".3f") for name in ("p50_s", "p95_s", "p99_s"))
    rows.append((f"{router['replicas']}, Serve's proxy", "", *cells, str(router["requests"])))
    heads = ("replicas", "tokens/s at saturation", "p50 s at 70% load", "p95 s", "p99 s", "requests")
    meaning = "Measured / simulated (simulated as a share of measured); some runs were repeated."
    return f"{markdown_table(heads, rows)}\n\n{meaning} {origin(result)}"


def plans_table(result: ResultFile) -> str:
    """Table of replicas by request mix, rate and GPU."""
    plans = [plan for plan in result["results"]["plans"] if plan["gpu"] != "one core"]
    gpus = list(dict.fromkeys(plan["gpu"] for plan in plans))
    found = {(plan["mix"], plan["rps"], plan["gpu"]): plan for plan in plans}
    rows = [
        (mix, f"{rps:g}", *(_replicas(found[mix, rps, gpu]) for gpu in gpus))
        for mix, rps in dict.fromkeys((plan["mix"], plan["rps"]) for plan in plans)
    ]
    targets = {plan["gpu"]: plan["p99_s"] for plan in plans}
    heads = ("request", "requests/s", *(f"{gpu.upper()}, p99 {1000 * targets[gpu]:g} ms" for gpu in gpus))
    return f"{markdown_table(heads, rows)}\n\n{origin(result)}"


def embedded_table(result: ResultFile) -> str:
    """Table of the cores that the embedded model needs."""
    rows = [
        (plan["mix"], f"{plan['rps']:g}", _replicas(plan))
        for plan in result["results"]["plans"]
        if plan["gpu"] == "one core"
    ]
    return markdown_table(("request", "requests/s", "cores, p99 2,000 ms"), rows)


def _replicas(plan: Mapping[str, Any]) -> str:
    if plan["replicas"] is None:
        return f"impossible: {1000 * plan['best_p99_s']:,.0f} ms at best"
    return f"{plan['replicas']:,}"


def sensitivity_table(result: ResultFile) -> str:
    """Table of the replicas for the example load, with one assumption changed per row."""
    rows = [
        (
            row["change"],
            _replicas(row),
            *(
                (f"{1000 * row['measured']['p99_s']:,.0f}", f"{row['measured']['utilisation']:.2f}")
                if row["replicas"]
                else ("", "")
            ),
        )
        for row in result["results"]["sensitivity"]
    ]
    return markdown_table(("change", "replicas", "p99 ms", "utilisation"), rows)


def region_table(result: ResultFile) -> str:
    """Table of the loss of one of three regions, as observed in a surviving region."""
    rows = []
    for row in result["results"]["regions"]:
        recovered = "never" if row["recovered_after_s"] is None else f"{row['recovered_after_s']:.0f} s"
        most = max(row["replicas"])
        cells = (f"{row['timeout_s']:g} s", f"{row['replicas_before']} to {most}", f"{row['worst_p99_s']:.1f} s")
        rows.append((*cells, f"{row['num_refused']:,}", recovered, f"{row['unreachable']:.0f}"))
    heads = (
        "request timeout",
        "replicas",
        "worst p99 of answered requests",
        "refused requests",
        "p99 back within the target after",
        "requests failed before failover",
    )
    return markdown_table(heads, rows)


def limits_table(result: ResultFile) -> str:
    """Table of the load on ingresses, routers and controller, by number of replicas."""
    rows = []
    for row in result["results"]["limits"]:
        second, slow = row["each second"], row["each 10 s"]
        rows.append(
            (
                f"{row['replicas']:,}",
                f"{row['rps']:,.0f}",
                f"{second['ingresses']:,}",
                f"{second['ingress_cpus']:,.1f} + {second['other_cpus']:,.1f}",
                f"{second['route_us']:,.0f}",
                f"{second['router_entries']:,}",
                f"{second['decide_ms']:,.0f}",
                f"{second['controller_messages_per_s']:,.0f} / {slow['controller_messages_per_s']:,.0f}",
                f"{second['controller_cpus']:.2f} / {slow['controller_cpus']:.2f}",
                f"{second['membership_mb']:,.1f}",
            )
        )
    heads = (
        "replicas",
        "requests/s",
        "ingresses",
        "CPUs: ingresses + other",
        "µs to route a shard",
        "routing table entries",
        "ms per autoscaling decision",
        "controller messages/s, interval 1 s / 10 s",
        "controller CPUs, interval 1 s / 10 s",
        "MB broadcast per replica change",
    )
    return markdown_table(heads, rows)


def cells_table(result: ResultFile) -> str:
    """Table of 1,000 replicas in cells, one of which is lost."""
    rows = [
        (
            str(row["count"]),
            str(row["replicas"]),
            f"{row['controller_cpus']:.2f}",
            f"{row['busy']:.0%}, {row['busy_after_loss']:.0%}",
            f"{1000 * row['worst_p99_s']:,.0f}",
            f"{row['refused']:.1%}",
        )
        for row in result["results"]["cells"]
    ]
    heads = (
        "cells",
        "GPUs in each",
        "busy cores of a controller",
        "busy GPUs before, after",
        "worst p99 after, ms",
        "refused after",
    )
    return markdown_table(heads, rows)


def tenants_table(result: ResultFile) -> str:
    """Table of the fullest cell, if tenants are assigned by hash."""
    rows = [
        (row["tenants"], f"{row['largest']:.1%}", f"{row['median']:.2f}", f"{row['p95']:.2f}")
        for row in result["results"]["tenants"]
    ]
    heads = ("tenants", "largest tenant", "fullest cell / mean: median", "95th percentile")
    return f"{markdown_table(heads, rows)}\n\n{origin(result)}"


SECTIONS: Mapping[str, PageSection] = {
    "plan-validation": (_VALIDATION, validation_table),
    "plans": (_TABLES, plans_table),
    "plans-embedded": (_TABLES, embedded_table),
    "plan-sensitivity": (_TABLES, sensitivity_table),
    "plan-region": (_TABLES, region_table),
    "plan-limits": (_LIMITS, limits_table),
    "plan-cells": (_CELLS, cells_table),
    "plan-tenants": (_CELLS, tenants_table),
}


def draw(results: Path, images: Path) -> None:
    """Writes the plots of the page."""
    simulated = read_result(results, _TABLES)["results"]
    _draw_curve(simulated["curve"], images / "capacity-curve.svg")
    _draw_regions(simulated["regions"], images / "capacity-region.svg")
    _draw_controller(read_result(results, _LIMITS)["results"]["controller"], images / "capacity-controller.svg")


def _draw_curve(curve: Sequence[Mapping[str, float]], path: Path) -> None:
    plt = svg_plots()
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained", facecolor="white")
    replicas = [row["replicas"] for row in curve]
    axes.plot(replicas, [1000 * row["p99_s"] for row in curve], color=RED, linewidth=2, marker="o", markersize=4)
    axes.plot(replicas, [1000 * row["p50_s"] for row in curve], color=INK, linewidth=1.5, marker="o", markersize=3)
    axes.axhline(500, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("p99", (replicas[-1], 1000 * curve[-1]["p99_s"]), (0, 6), textcoords="offset points", color=RED)
    axes.annotate("p50", (replicas[-1], 1000 * curve[-1]["p50_s"]), (0, -12), textcoords="offset points", color=INK)
    axes.annotate("target", (replicas[-1], 500), (-10, 4), textcoords="offset points", color=GREY)
    axes.set_ylim(0, 1_000)
    axes.set_xlabel("replicas (H100, 1B model, assumed MFU 0.4)")
    axes.set_ylabel("ms")
    save_figure(figure, path)


def _draw_regions(regions: Sequence[Mapping[str, Any]], path: Path) -> None:
    plt = svg_plots()
    figure, rows = plt.subplots(3, 1, sharex=True, figsize=(8, 5.4), layout="constrained", facecolor="white")
    for region, colour in zip(regions, (INK, RED), strict=True):
        seconds = [second - region["lost_at_s"] for second in range(len(region["replicas"]))]
        label = f"request timeout {region['timeout_s']:g} s"
        rows[0].step(seconds, region["replicas"], where="post", color=colour, linewidth=1.8, label=label)
        rows[1].plot(seconds, [max(value, 1e-3) for value in region["p99_s"]], color=colour, linewidth=1.5)
        rows[2].plot(seconds, region["refused"], color=colour, linewidth=1.2)
    rows[1].set_yscale("log")
    rows[1].yaxis.set_major_formatter("{x:g}")
    rows[1].axhline(0.5, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    labels = ("replicas", "p99 of answers, s", "refused requests/s")
    for axes, label in zip(rows, labels, strict=True):
        axes.set_ylabel(label)
        axes.axvline(0, color=GREY, linewidth=1)
    rows[0].set_ylim(bottom=0)
    rows[0].legend(frameon=False, fontsize=9, loc="lower right")
    rows[2].set_xlabel("seconds since the loss of one of three regions")
    save_figure(figure, path)


def _draw_controller(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    plt = svg_plots()
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained", facecolor="white")
    replicas = [row["replicas"] for row in rows]
    for name, colour in (("each second", RED), ("each 10 s", _BLUE)):
        axes.plot(
            replicas, [row[name] for row in rows], color=colour, linewidth=2, label=f"reports and health checks {name}"
        )
    axes.axhline(1.0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("the limit: one core", (replicas[0], 1.0), (2, 4), textcoords="offset points", color=INK, fontsize=9)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(0, 1.5)
    axes.set_xlabel("replicas in one cluster")
    axes.set_ylabel("busy CPUs of Serve's controller")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0.0, 0.66))
    save_figure(figure, path)
