"""`rerank-service bench`: measures the engines on this machine, or a running service."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.table import Column, Table

from rerank_service.tools.bench.workload import Lengths
from rerank_service.tools.cli.bench_service import bench_service_command
from rerank_service.tools.cli.console import say, stdout
from rerank_service.tools.cli.flags import Command, Group

if TYPE_CHECKING:
    from rerank_service.tools.bench.engine import EngineFigures

__all__ = ["bench", "engine_table"]

bench = typer.Typer(
    cls=Group,
    help="Measure speed on this machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
bench.command("service", cls=Command)(bench_service_command)


@bench.command(cls=Command)
def engine(
    lengths: Lengths = typer.Option(
        Lengths.SHORT, help="Length of the passages: search snippets, pieces of documents, or whole documents."
    ),
    num_pairs: int = typer.Option(128, "--pairs", min=1, help="Number of query-passage pairs per run."),
    repeats: int = typer.Option(3, min=1, help="Number of runs; the median is shown."),
    num_threads: int | None = typer.Option(
        None, "--threads", min=1, help="Number of threads; by default all CPUs of this process."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Compare the CPU engines with a plain run of the same weights.

    The plain run is a forward pass of transformers in float32, without anything around it: padded batches of 32 pairs,
    or one pair at a time, whichever is faster.
    """
    from rerank_service.tools.bench.engine import bench_engines  # torch takes seconds to import

    figures = list(bench_engines(lengths, num_pairs, repeats, num_threads))
    if as_json:
        settings = {"lengths": lengths.value, "num_pairs": num_pairs, "repeats": repeats}
        typer.echo(json.dumps(settings | {"engines": [row._asdict() for row in figures]}))
        return
    stdout.print(engine_table(figures, f"{num_pairs} pairs, {lengths.value}; median of {repeats} runs"))
    say(
        "CPU-s/1k: CPU seconds per 1,000 pairs. plain: the same for the plain run. ratio: CPU-s/1k divided by "
        "plain. peak: share of CPU-s/1k that the matrix products alone would take. error: largest difference from a "
        "logit in float32."
    )


def engine_table(figures: "Sequence[EngineFigures]", title: str) -> Table:
    """A table with one row per engine and precision."""
    table = Table(
        Column("engine", overflow="fold"),
        Column("dtype", no_wrap=True),
        *(
            Column(name, justify="right", no_wrap=True)
            for name in ("CPU-s/1k", "plain", "ratio", "peak", "pairs/s", "error")
        ),
        title=title,
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for row in figures:
        table.add_row(
            row.engine,
            row.dtype,
            f"{row.cpu_s_per_1k_pairs:.1f}",
            f"{row.bare_cpu_s_per_1k_pairs:.1f}",
            f"{row.ratio_to_bare:.2f}",
            f"{row.share_of_peak:.0%}",
            f"{row.pairs_per_s:.0f}",
            f"{row.max_logit_error:.2g}",
        )
    return table
