"""Tables and plots of docs/capacity.md, from what `benchmarks.simulate_cluster` recorded."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Record, _markdown, _origin

__all__ = ["SECTIONS", "plot_all"]

_OURS, _GREY, _DARK, _BLUE = "#d1495b", "#9aa0a6", "#3c4043", "#30638e"
_VALIDATION, _TABLES, _LIMITS = "plan-validation.json", "plan-tables.json", "plan-limits.json"


def validation_table(record: Record) -> str:
    """Measured and simulated, side by side."""

    def cell(figure: Mapping[str, float], form: str) -> str:
        return f"{figure['measured']:{form}} / {figure['simulated']:{form}} ({figure['ratio']:.2f})"

    rows = [
        (
            str(row["replicas"]),
            cell(row["tokens_per_s"], ",.0f"),
            *(cell(row[name], ".3f") for name in ("p50_s", "p95_s", "p99_s")),
            str(row["requests"]),
        )
        for row in record["results"]["rows"]
    ]
    router = record["results"]["router"]
    cells = (cell(router[name], ".3f") for name in ("p50_s", "p95_s", "p99_s"))
    rows.append((f"{router['replicas']}, Serve's proxy", "", *cells, str(router["requests"])))
    heads = ("replicas", "tokens/s at saturation", "p50 s at 70%", "p95 s at 70%", "p99 s at 70%", "requests")
    return f"{_markdown(heads, rows)}\n\nMeasured / simulated (ratio). {_origin(record)}"


def plans_table(record: Record) -> str:
    """Replicas by load and GPU."""
    plans = [plan for plan in record["results"]["plans"] if plan["gpu"] != "one core"]
    gpus = list(dict.fromkeys(plan["gpu"] for plan in plans))
    found = {(plan["mix"], plan["rps"], plan["gpu"]): plan for plan in plans}
    rows = [
        (mix, f"{rps:g}", *(_replicas(found[mix, rps, gpu]) for gpu in gpus))
        for mix, rps in dict.fromkeys((plan["mix"], plan["rps"]) for plan in plans)
    ]
    targets = {plan["gpu"]: plan["p99_s"] for plan in plans}
    heads = ("request", "requests/s", *(f"{gpu.upper()}, p99 {1000 * targets[gpu]:g} ms" for gpu in gpus))
    return f"{_markdown(heads, rows)}\n\n{_origin(record)}"


def embedded_table(record: Record) -> str:
    """The embedded model on CPU cores."""
    rows = [
        (plan["mix"], f"{plan['rps']:g}", _replicas(plan))
        for plan in record["results"]["plans"]
        if plan["gpu"] == "one core"
    ]
    return _markdown(("request", "requests/s", "cores, p99 2,000 ms"), rows)


def _replicas(plan: Mapping[str, Any]) -> str:
    if plan["replicas"] is None:
        return f"none: {1000 * plan['best_p99_s']:,.0f} ms at best"
    return f"{plan['replicas']:,}"


def sensitivity_table(record: Record) -> str:
    """The sample question with one thing changed."""
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
        for row in record["results"]["sensitivity"]
    ]
    return _markdown(("changed", "replicas", "p99 ms", "devices busy"), rows)


def region_table(record: Record) -> str:
    """One survivor of three."""
    rows = []
    for row in record["results"]["regions"]:
        recovered = "never" if row["recovered_after_s"] is None else f"{row['recovered_after_s']:.0f} s"
        most = max(row["replicas"])
        cells = (f"{row['timeout_s']:g} s", f"{row['replicas_before']} to {most}", f"{row['worst_p99_s']:.1f} s")
        rows.append((*cells, f"{row['num_refused']:,}", recovered, f"{row['unreachable']:.0f}"))
    heads = (
        "time limit of a request",
        "replicas",
        "worst p99 of what is answered",
        "refused",
        "p99 kept again after",
        "failed before failover",
    )
    return _markdown(heads, rows)


def limits_table(record: Record) -> str:
    """By size of the cluster, at both cadences."""
    rows = []
    for row in record["results"]["limits"]:
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
        "CPUs: ingresses + rest",
        "µs to route a shard",
        "counts kept in all",
        "ms to decide",
        "controller's messages/s, each 1 s / 10 s",
        "controller's core, each 1 s / 10 s",
        "MB sent when one comes or goes",
    )
    return _markdown(heads, rows)


SECTIONS: Mapping[str, tuple[str, Callable[[Record], str]]] = {
    "plan-validation": (_VALIDATION, validation_table),
    "plans": (_TABLES, plans_table),
    "plans-embedded": (_TABLES, embedded_table),
    "plan-sensitivity": (_TABLES, sensitivity_table),
    "plan-region": (_TABLES, region_table),
    "plan-limits": (_LIMITS, limits_table),
}
"""Section -> file and how it is shown."""


def plot_all(records: Mapping[str, Record], folder: Path) -> None:
    """Writes the plots of the page."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rerank-service"  # the same figures make the same file
    results = records[_TABLES]["results"]
    _plot_curve(results["curve"], folder / "capacity-curve.svg")
    _plot_regions(results["regions"], folder / "capacity-region.svg")
    _plot_controller(records[_LIMITS]["results"]["controller"], folder / "capacity-controller.svg")


def _plot_curve(curve: Sequence[Mapping[str, float]], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained", facecolor="white")
    replicas = [row["replicas"] for row in curve]
    axes.plot(replicas, [1000 * row["p99_s"] for row in curve], color=_OURS, linewidth=2, marker="o", markersize=4)
    axes.plot(replicas, [1000 * row["p50_s"] for row in curve], color=_DARK, linewidth=1.5, marker="o", markersize=3)
    axes.axhline(500, color=_GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("p99", (replicas[-1], 1000 * curve[-1]["p99_s"]), (0, 6), textcoords="offset points", color=_OURS)
    axes.annotate("p50", (replicas[-1], 1000 * curve[-1]["p50_s"]), (0, -12), textcoords="offset points", color=_DARK)
    axes.annotate("target", (replicas[-1], 500), (-10, 4), textcoords="offset points", color=_GREY)
    axes.set_ylim(0, 1_000)
    axes.set_xlabel("replicas (H100, the 1B at an assumed MFU of 0.4)")
    axes.set_ylabel("ms")
    _save(figure, path)


def _plot_regions(regions: Sequence[Mapping[str, Any]], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, rows = plt.subplots(3, 1, sharex=True, figsize=(8, 5.4), layout="constrained", facecolor="white")
    for region, colour in zip(regions, (_DARK, _OURS), strict=True):
        seconds = [second - region["lost_at_s"] for second in range(len(region["replicas"]))]
        label = f"requests may take {region['timeout_s']:g} s"
        rows[0].step(seconds, region["replicas"], where="post", color=colour, linewidth=1.8, label=label)
        rows[1].plot(seconds, [max(value, 1e-3) for value in region["p99_s"]], color=colour, linewidth=1.5)
        rows[2].plot(seconds, region["refused"], color=colour, linewidth=1.2)
    rows[1].set_yscale("log")
    rows[1].yaxis.set_major_formatter("{x:g}")
    rows[1].axhline(0.5, color=_GREY, linewidth=1, linestyle=(0, (4, 3)))
    labels = ("replicas", "p99 of answers, s", "refused a second")
    for axes, label in zip(rows, labels, strict=True):
        axes.set_ylabel(label)
        axes.axvline(0, color=_GREY, linewidth=1)
    rows[0].set_ylim(bottom=0)
    rows[0].legend(frameon=False, fontsize=9, loc="lower right")
    rows[2].set_xlabel("seconds after one of three regions is lost")
    _save(figure, path)


def _plot_controller(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained", facecolor="white")
    replicas = [row["replicas"] for row in rows]
    for name, colour in (("each second", _OURS), ("each 10 s", _BLUE)):
        axes.plot(replicas, [row[name] for row in rows], color=colour, linewidth=2, label=f"reports and checks {name}")
    axes.axhline(1.0, color=_DARK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("its one core", (replicas[0], 1.0), (2, 4), textcoords="offset points", color=_DARK, fontsize=9)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(0, 1.5)
    axes.set_xlabel("replicas in one cluster")
    axes.set_ylabel("busy cores of Serve's controller")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0.0, 0.66))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
