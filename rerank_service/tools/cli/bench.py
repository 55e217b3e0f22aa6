"""`rerank-service bench`: measures the engines on this machine, or a running service."""

import json

import typer
from rich.table import Column, Table

from rerank_service.tools.bench.workload import Lengths
from rerank_service.tools.cli.bench_service import bench_service_command
from rerank_service.tools.cli.console import stdout

__all__ = ["bench"]

bench = typer.Typer(
    help="Measure speed on this machine.", no_args_is_help=True, add_completion=False, rich_markup_mode="markdown"
)
bench.command("service")(bench_service_command)


@bench.command()
def engine(
    lengths: Lengths = typer.Option(Lengths.SHORT, help="Distribution of passage lengths."),
    num_pairs: int = typer.Option(48, "--pairs", min=1, help="Pairs per run."),
    repeats: int = typer.Option(3, min=1, help="Runs per engine; engines alternate, and the median is shown."),
    num_threads: int | None = typer.Option(
        None, "--threads", min=1, help="Number of threads; by default all CPUs of this process."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Compare the CPU engines with a bare forward pass with the same weights."""
    from rerank_service.tools.bench.engine import bench_engines  # torch takes seconds to import

    figures = [row._asdict() for row in bench_engines(lengths, num_pairs, repeats, num_threads)]
    if as_json:
        settings = {"lengths": lengths.value, "num_pairs": num_pairs, "repeats": repeats}
        typer.echo(json.dumps(settings | {"engines": figures}))
        return
    numbers = ("CPU-s/1k", "bare", "ratio", "pairs/s", "error")
    table = Table(
        Column("engine", overflow="fold"),
        Column("dtype", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in numbers),
        title=f"{num_pairs} pairs, {lengths.value}; median of {repeats} runs",
        box=None,
    )
    for row in figures:
        table.add_row(
            row["engine"],
            row["dtype"],
            f"{row['cpu_s_per_1k_pairs']:.1f}",
            f"{row['bare_cpu_s_per_1k_pairs']:.1f}",
            f"{row['ratio_to_bare']:.2f}",
            f"{row['pairs_per_s']:.0f}",
            f"{row['max_logit_error']:.2g}",
        )
    stdout.print(table)
