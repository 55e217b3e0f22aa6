"""`rerank-service bench service`: measures a running service under load."""

import json
from dataclasses import asdict
from typing import Any

import typer
from rich.table import Column, Table

from rerank_service.tools.cli.console import Key, Url, fail, say, stdout

__all__ = ["bench_service_command", "probe_line", "service_table"]


def bench_service_command(
    url: Url = "http://127.0.0.1:8000",
    key: Key = None,
    model: str | None = typer.Option(None, help="Name of the model; by default the service's default model."),
    clients: str = typer.Option("1,16", help="Numbers of concurrent clients to measure, such as 1,16."),
    num_requests: int = typer.Option(16, "--requests", min=1, help="Number of requests in each load."),
    num_passages: int = typer.Option(100, "--passages", min=1, help="Passages per request, except in the mixed load."),
    passage_tokens: int = typer.Option(128, min=3, help="Tokens per passage, except in the mixed load."),
    repeats: int = typer.Option(3, min=1, help="Number of runs of each load; the median is shown."),
    pid: int | None = typer.Option(None, help="Process id of `rerank-service serve`, to measure CPU time too."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Measure a running service under load.

    The loads are one client, many clients, requests of mixed sizes, and a small request behind a large one.
    """
    from rerank_service.tools.bench.service import Load, bench_service  # torch takes seconds to import

    load = Load(
        url=url,
        clients=_numbers(clients),
        num_requests=num_requests,
        num_passages=num_passages,
        passage_tokens=passage_tokens,
        repeats=repeats,
        pid=pid,
        model=model,
        headers={"Authorization": f"Bearer {key}"} if key else None,
    )
    try:
        figures = asdict(bench_service(load))
    except RuntimeError as error:
        raise fail(str(error)) from None
    if as_json:
        settings = {name: getattr(load, name) for name in ("num_requests", "num_passages", "passage_tokens", "repeats")}
        typer.echo(json.dumps(settings | figures))
        return
    title = f"{num_requests} requests of {num_passages} passages of {passage_tokens} tokens; median of {repeats} runs"
    stdout.print(service_table(figures, title))
    say(probe_line(figures))


def service_table(figures: dict[str, Any], title: str) -> Table:
    """A table with one row per load."""
    numbers = ("p50 s", "p95 s", "p99 s", "passages/s", "CPU-s/1k")
    table = Table(
        Column("load", overflow="fold"),
        *(Column(name, justify="right", no_wrap=True) for name in numbers),
        Column("failures", overflow="fold"),
        title=title,
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name, load in figures["loads"].items():
        table.add_row(
            name,
            *(_shown(load[f"p{percentile}_s"], ".2f") for percentile in (50, 95, 99)),
            _shown(load["passages_per_s"], ".0f"),
            _shown(load["cpu_s_per_1k_passages"], ".1f"),
            ", ".join(f"{count} x {status}" for status, count in load["failures"].items()) or "none",
        )
        if name == "mixed":
            for size, seconds in load["p50_s_by_passages"].items():
                table.add_row(f"  of {size}", _shown(seconds, ".2f"))
    return table


def probe_line(figures: dict[str, Any]) -> str:
    """A sentence that says how long a small request waits behind a large one."""
    share = figures["wait_share"]
    if share is None:
        return "The large request ended before a small request could be sent, so the wait was not measured."
    return (
        f"A request of 1 passage takes {figures['small_behind_big_s']:.2f} s behind a request of 300, and "
        f"{figures['small_alone_s']:.2f} s alone: it waits {share:.2f} of the {figures['big_s']:.2f} s that the large "
        "request takes."
    )


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise fail(f"--clients {text!r} is not a list of positive whole numbers, such as 1,16")
    return numbers
