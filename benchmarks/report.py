"""Puts the tables and the plot of `docs/performance.md` together from `benchmarks/results`.

    python benchmarks/report.py [--results benchmarks/results] [--docs docs]

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`; everything else in the file is left alone, and so
is the table of a result that is not there. The plot needs matplotlib, of the extra `bench`.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["TABLES", "replace_sections"]

_SECTION = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_OURS, _PEER, _LIMIT = "#d1495b", "#9aa0a6", "#3c4043"
_ESCAPED = "\\|"
_PLOT = "images/performance-cpu.svg"
_STEP_PLOT = "images/step.svg"
_PLUMBING = ("click", "fastapi", "numpy", "typer", "uvicorn")
"""Pinned, but nothing that a reader compares; the results have their versions too."""

Record = Mapping[str, Any]
"""A file of `benchmarks/results`."""


def replace_sections(text: str, contents: Mapping[str, str]) -> str:
    """The text with new contents in its sections; `KeyError` if one of them has no section."""
    missing = set(contents) - {match["name"] for match in _SECTION.finditer(text)}
    if missing:
        raise KeyError(f"no section for {', '.join(sorted(missing))}")

    def replaced(match: re.Match[str]) -> str:
        content = contents.get(match["name"])
        return match[0] if content is None else f"{match[1]}\n{content}\n\n{match[3]}"

    return _SECTION.sub(replaced, text)


def engine_table(record: Record) -> str:
    """Every engine beside the bare forward of its weights."""
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
        for row in record["results"]
    ]
    heads = ("engine", "passages", "precision", "CPU-s per 1,000 pairs", "bare float32", "ratio", "pairs/s", "error")
    return f"{_markdown(heads, rows, num_names=3)}\n\n{_origin(record)}"


def service_table(record: Record) -> str:
    """The service under each load."""
    results = record["results"]
    rows = []
    for name, load in results["loads"].items():
        percentiles = [_shown(load[f"p{percentile}_s"], ".2f") for percentile in (50, 95, 99)]
        cpu_s = _shown(load["cpu_s_per_1k_passages"], ".1f")
        rows.append((name, *percentiles, f"{load['passages_per_s']:.0f}", cpu_s, _failures(load["failures"])))
    heads = ("load", "p50 s", "p95 s", "p99 s", "passages/s", "CPU-s per 1,000 passages", "failures")
    return f"{_markdown(heads, rows)}\n\n{_probe(results)}\n\n{_origin(record)}"


def _probe(results: Record) -> str:
    share = results["wait_share"]
    if share is None:
        return "A request of 300 passages was over too soon to make one of 1 passage wait."
    return (
        f"A request of 1 passage takes {results['small_alone_s']:.2f} s alone, and "
        f"{results['small_behind_big_s']:.2f} s behind one of 300 passages: it waits {share:.2f} of the "
        f"{results['big_s']:.2f} s that the big one takes."
    )


def peers_table(record: Record) -> str:
    """All contenders, cheapest first; those that could not be measured last."""
    bare = sorted(row["cpu_s_per_1k_pairs"] for row in record["bare"])[len(record["bare"]) // 2]
    bare_pairs = sorted(row["pairs_per_s"] for row in record["bare"])[len(record["bare"]) // 2]
    rows = [("bare float32 forward, no server", f"{bare:.1f}", "1.00", f"{bare_pairs:.0f}", "", "", "0", "")]
    for contender in sorted(record["contenders"], key=_ratio):
        rows.append((_bold_ours(contender["name"]), *_peer_cells(contender)))
    heads = (
        "server",
        "CPU-s per 1,000 pairs",
        "ratio to bare",
        f"pairs/s, {record['settings']['num_clients']} clients",
        "p50 s, 1 client",
        "wait behind a big request",
        "error",
        "failures",
    )
    settings = record["settings"]
    told = (
        f"{settings['num_pairs']:,} pairs of {settings['mean_pair_tokens']:.0f} tokens on average; medians of "
        f"{settings['num_rounds']} rounds; {settings['num_threads']} threads; the logits span "
        f"{settings['logit_range']:.2g}."
    )
    return f"{_markdown(heads, rows)}\n\n{told} {_origin(record)}"


def versions_table(record: Record) -> str:
    """What each contender was, and what a reader must know of it."""
    rows = []
    for contender in record["contenders"]:
        versions = ", ".join(
            f"{name} {number}" for name, number in contender["versions"].items() if name not in _PLUMBING
        )
        remarks = [contender["note"], contender["error"] and f"not measured: {contender['error'].splitlines()[0]}"]
        rows.append((contender["name"], versions, "; ".join(filter(None, remarks))))
    return _markdown(("server", "versions", "remarks"), rows, num_names=3)


def overhead_table(record: Record) -> str:
    """What the service costs around a null engine, by front."""
    rows = [
        (
            front,
            f"{row['cpu_ms']:.1f}",
            f"{row['requests_per_s']:.0f}",
            f"{row['p50_ms']:.0f}",
            f"{row['idle_cpus']:.2f}",
        )
        for front, row in record["results"].items()
    ]
    heads = ("front", "CPU-ms a request", "requests/s", "p50 ms, 32 clients", "CPUs when idle")
    return f"{_markdown(heads, rows)}\n\n{_origin(record)}"


def scaling_table(record: Record) -> str:
    """Share of the devices' speed that comes out of the service, by replicas."""
    rows = [
        (str(row["replicas"]), f"{row['tokens_per_s']:,.0f}", f"{row['efficiency']:.3f}", _outcomes(row["outcomes"]))
        for row in record["results"]
    ]
    heads = ("replicas", "tokens/s", "share of the devices' speed", "answers")
    return f"{_markdown(heads, rows)}\n\n{_origin(record)}"


def router_table(record: Record) -> str:
    """Waits under each choice of a replica, round by round."""
    percentiles = ("p50_s", "p95_s", "p99_s")
    rows = [
        (row["router"], *(f"{row[name]:.2f}" for name in percentiles), _outcomes(row["outcomes"]))
        for row in record["results"]
    ]
    return f"{_markdown(('router', 'p50 s', 'p95 s', 'p99 s', 'answers'), rows)}\n\n{_origin(record)}"


def overload_table(record: Record) -> str:
    """One run at three times the capacity."""
    figures = record["results"]
    rows = [
        ("capacity, tokens/s", f"{figures['capacity_tokens_per_s']:,.0f}"),
        ("offered, tokens/s", f"{figures['offered_tokens_per_s']:,.0f}"),
        ("answered in time, tokens/s", f"{figures['goodput_tokens_per_s']:,.0f}"),
        ("share of the capacity", f"{figures['goodput_share']:.2f}"),
        ("answers", _outcomes(figures["outcomes"])),
        (f"longest answer, of {figures['deadline_s']:g} s allowed", f"{figures['accepted_longest_s']:.1f} s"),
        ("a refusal comes after (p99)", f"{1000 * figures['refused_p99_s']:.0f} ms"),
    ]
    return f"{_markdown(('figure', 'value'), rows)}\n\n{_origin(record)}"


def step_table(record: Record) -> str:
    """When the replicas came and went."""
    figures = record["results"]
    rows = [
        ("four replicas ready, after the step", _seconds(figures["full_after_s"])),
        ("one replica again, after the end of the load", _seconds(figures["one_after_s"])),
        ("answers", _outcomes(figures["outcomes"])),
    ]
    return f"{_markdown(('figure', 'value'), rows)}\n\n{_origin(record)}"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def _outcomes(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())


TABLES: Mapping[str, tuple[str, Callable[[Record], str]]] = {
    "engine": ("engine-cpu.json", engine_table),
    "service": ("service-cpu.json", service_table),
    "peers": ("peers-cpu.json", peers_table),
    "peers-versions": ("peers-cpu.json", versions_table),
    "stack-overhead": ("stack-overhead.json", overhead_table),
    "stack-scaling": ("stack-scaling.json", scaling_table),
    "stack-router": ("stack-router.json", router_table),
    "stack-overload": ("stack-overload.json", overload_table),
    "stack-step": ("stack-step.json", step_table),
    "stack-step-plot": ("stack-step.json", lambda _: f"![replicas and answers under a step of load]({_STEP_PLOT})"),
    "peers-plot": ("peers-cpu.json", lambda _: f"![CPU time of each server relative to the bare forward]({_PLOT})"),
}
"""Section -> file and how it is shown."""


def plot(record: Record, path: Path) -> None:
    """CPU time relative to the bare forward, a bar each; reads the same on light and dark pages."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rerank-service"  # the same figures make the same file
    import matplotlib.pyplot as plt

    measured = sorted((row for row in record["contenders"] if row["figures"]), key=_ratio, reverse=True)
    ratios = [_ratio(row) for row in measured]
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(measured) + 1.2), layout="constrained", facecolor="white")
    colours = [_OURS if row["name"].startswith("ours") else _PEER for row in measured]
    bars = axes.barh([row["name"] for row in measured], ratios, height=0.68, color=colours)
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=4, color=_LIMIT)
    axes.vlines(1.0, -0.6, len(measured) - 0.5, color=_LIMIT, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(1.0, len(measured) - 0.45, "bare float32 forward", ha="center", va="bottom", color=_LIMIT, fontsize=9)
    axes.set_xlim(0, 1.12 * max([*ratios, 1.0]))
    axes.set_ylim(-0.6, len(measured))
    axes.set_xlabel("CPU-seconds of the whole server per pair, relative to the bare forward (less is better)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(mpl.ticker.MultipleLocator(0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def plot_step(record: Record, path: Path) -> None:
    """Ready replicas and answered tokens, second by second."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rerank-service"
    import matplotlib.pyplot as plt

    figures = record["results"]
    seconds = range(len(figures["replicas"]))
    answered = [sum(figures["answered_tokens_per_s"][max(0, at - 2) : at + 1]) / 3000 for at in seconds]
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(8, 3.6), layout="constrained", facecolor="white")
    above.step(seconds, figures["replicas"], where="post", color=_OURS, linewidth=2)
    above.set_ylabel("ready replicas")
    above.set_ylim(0, 4.6)
    below.plot(seconds, answered, color=_LIMIT, linewidth=1.5)
    below.set_ylabel("1,000 tokens/s")
    below.set_ylim(0, None)
    below.set_xlabel("seconds")
    for axes in (above, below):
        axes.axvspan(figures["step_at_s"], figures["end_at_s"], color=_PEER, alpha=0.15, linewidth=0)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], num_names: int = 1) -> str:
    """A table whose first `num_names` columns hold words, the others numbers."""
    rule = ["---"] * num_names + ["---:"] * (len(heads) - num_names)
    return "\n".join(
        f"| {' | '.join(cell.replace('|', _ESCAPED) for cell in cells)} |" for cells in (heads, rule, *rows)
    )


def _peer_cells(contender: Record) -> list[str]:
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


def _ratio(contender: Record) -> float:
    return float(contender["figures"]["ratio_to_bare"]) if contender["figures"] else float("inf")


def _bold_ours(name: str) -> str:
    return f"**{name}**" if name.startswith("ours") else name


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _failures(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in failures.items()) or "none"


def _origin(record: Record) -> str:
    hardware = record["hardware"]
    commit = (record["commit"] or "unknown")[:12] + (" with changes" if record["has_uncommitted_changes"] else "")
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores; {record['date'][:10]}, commit {commit}; `{record['command']}`."
    )


def main(
    results: Annotated[Path, typer.Option(help="Where the figures are.")] = Path("benchmarks/results"),
    docs: Annotated[Path, typer.Option(help="Where performance.md is.")] = Path("docs"),
) -> None:
    """Rewrites the sections whose results are there."""
    contents = {}
    for name, (file, shown) in TABLES.items():
        if (results / file).exists():
            contents[name] = shown(json.loads((results / file).read_text(encoding="utf-8")))
        else:
            print(f"{results / file} is not there; section {name} stays as it is")
    page = docs / "performance.md"
    page.write_text(replace_sections(page.read_text(encoding="utf-8"), contents), encoding="utf-8")
    if "peers-plot" in contents:
        plot(json.loads((results / TABLES["peers-plot"][0]).read_text(encoding="utf-8")), docs / _PLOT)
    if "stack-step-plot" in contents:
        plot_step(json.loads((results / "stack-step.json").read_text(encoding="utf-8")), docs / _STEP_PLOT)


if __name__ == "__main__":
    typer.run(main)
