"""The command line of the comparison; see `python -m benchmarks.peers --help`."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers.utils import logging as transformers_logging

from benchmarks.peers.bare_runs import BareFigures
from benchmarks.peers.contenders import CONTENDERS, Contender
from benchmarks.peers.environments import OURS, InstallFailed, install, is_installed, versions
from benchmarks.peers.masking import AVX2_ALONE, UNMASKABLE, environment_with_avx2_alone
from benchmarks.peers.processes import stop_on_signals
from benchmarks.peers.recording import Recording
from benchmarks.peers.rounds import Result, RoundSettings, run_rounds
from benchmarks.peers.shared_model import (
    LOADS,
    ONNX_ENVIRONMENT,
    LoadShape,
    SharedModels,
    draw_workload,
    export_onnx,
    load_bare,
    write_classifier,
)


def main(
    only: Annotated[str | None, typer.Option(help="Contenders, comma-separated; default: all.")] = None,
    install_only: Annotated[bool, typer.Option("--install", help="Reinstall the environments, then exit.")] = False,
    num_rounds: Annotated[int, typer.Option("--rounds", min=1)] = 3,
    num_tokens: Annotated[int, typer.Option("--tokens", help="Mean length of a pair: 126 or 390.")] = 126,
    mask: Annotated[bool, typer.Option("--avx2", help="Hide AVX-512 and AVX-VNNI.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the measurement in the file of --json.")] = False,
    num_requests: Annotated[int | None, typer.Option("--requests", min=1)] = None,
    num_passages: Annotated[int | None, typer.Option("--passages", min=1)] = None,
    num_clients: Annotated[int, typer.Option("--clients", min=2, help="Clients in the load with many clients.")] = 16,
    num_threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads; default: all CPUs.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Compares CPU time, throughput, latency, fairness and logits of this service and its peers.

    Peers that are far behind the best one of their precision after the first round take no further turns. The file of
    --json is written after each turn; --resume continues it.
    """
    if mask and not AVX2_ALONE.items() <= os.environ.items():  # torch has read its environment already
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.peers", *sys.argv[1:]], os.environ | AVX2_ALONE)  # noqa: S606
    stop_on_signals()
    transformers_logging.disable_progress_bar()
    console = Console()
    results = [Result(contender) for contender in _chosen(only)]
    _install(results, install_only, console)
    if install_only:
        return
    models = SharedModels()
    _prepare_models(results, models, console)
    threads = num_threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    bare, load = load_bare(models), _load(num_tokens, num_requests, num_passages)
    plan = RoundSettings(
        models=models,
        load=load,
        workload=draw_workload(models, bare, load),
        bare=bare,
        num_rounds=num_rounds,
        num_clients=num_clients,
        num_threads=threads,
        masks=_masks(results) if mask else {},
    )
    recording = Recording(json_path, plan, resume)
    recording.read(results)
    bare_figures = _run(results, plan, recording, console)
    console.print(_table(results, bare_figures, plan))
    for result in results:
        if result.error:
            console.print(f"{result.contender.name}: {result.error}", markup=False, highlight=False)


def _chosen(only: str | None) -> list[Contender]:
    if only is None:
        return list(CONTENDERS)
    wanted = only.split(",")
    unknown = set(wanted) - {contender.name for contender in CONTENDERS}
    if unknown:
        known = ", ".join(contender.name for contender in CONTENDERS)
        raise typer.BadParameter(f"unknown contenders: {', '.join(sorted(unknown))}; known contenders: {known}")
    return [contender for contender in CONTENDERS if contender.name in wanted]


def _install(results: Sequence[Result], again: bool, console: Console) -> None:
    """Installs missing and outdated environments of peers, or all of them if `again` is true.

    Our own environment runs this process, so it needs no installation.
    """
    environments = {result.contender.environment for result in results}
    if any(result.contender.needs_onnx for result in results):
        environments.add(ONNX_ENVIRONMENT)
    problems = {}
    for environment in sorted(environments - {OURS}):
        try:
            if again or not is_installed(environment):
                console.print(f"Installing {environment} into .bench/peers (takes minutes, but only once)")
                install(environment)
        except InstallFailed as error:
            problems[environment] = str(error)
    for result in results:
        environment = result.contender.environment
        if environment in problems:
            result.error = f"not installed: {problems[environment]}"
        else:
            result.versions = versions(environment)


def _load(num_tokens: int, num_requests: int | None, num_passages: int | None) -> LoadShape:
    if num_tokens not in LOADS:
        raise typer.BadParameter(f"pairs have {' or '.join(map(str, LOADS))} tokens on average, not {num_tokens}")
    load = LOADS[num_tokens]
    return replace(load, num_requests=num_requests or load.num_requests, num_passages=num_passages or load.num_passages)


def _masks(results: Sequence[Result]) -> dict[str, dict[str, str]]:
    """Variables for each environment. Contenders that cannot be masked get an error."""
    masks: dict[str, dict[str, str]] = {}
    for result in results:
        environment = result.contender.environment
        if environment in UNMASKABLE:
            result.error = "its kernels cannot be masked"
            continue
        try:
            if environment not in masks:
                masks[environment] = environment_with_avx2_alone(environment)
        except InstallFailed as error:
            result.error = result.error or str(error)
    return masks


def _prepare_models(results: Sequence[Result], models: SharedModels, console: Console) -> None:
    write_classifier(models)
    if not any(result.contender.needs_onnx for result in results):
        return
    console.print("Exporting the checkpoint to ONNX, unless the files exist")
    try:
        export_onnx(models)
    except (InstallFailed, OSError) as error:
        for result in results:
            if result.contender.needs_onnx:
                result.error = result.error or str(error)


def _run(results: Sequence[Result], plan: RoundSettings, recording: Recording, console: Console) -> list[BareFigures]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    steps = len(results) * plan.num_rounds
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("starting", total=steps, completed=-1)

        def show(step: str) -> None:
            progress.update(task, description=step, advance=1)
            if not console.is_terminal:
                console.print(step)

        bare = run_rounds(results, plan, show, partial(recording.write, results))
        progress.update(task, description="measured", completed=steps)
    return bare


def _table(results: Sequence[Result], bare: Sequence[BareFigures], plan: RoundSettings) -> Table:
    workload = plan.workload
    title = (
        f"{len(workload.requests)} requests, {workload.num_pairs} pairs of {workload.mean_tokens:.0f} tokens; "
        f"{plan.num_threads} threads; median of {plan.num_rounds} rounds"
    )
    caption = f"pairs/s with {plan.num_clients} clients, p50 with 1; wait as a share of a large request's time"
    table = Table(title=title, box=None, caption=caption)
    table.add_column("contender", no_wrap=True)
    for column in ("CPU-s/1k", "ratio", "peak", "pairs/s", "p50 s", "wait", "error", "failed"):
        table.add_column(column, justify="right", no_wrap=True)
    middle = sorted(bare, key=lambda figures: figures.cpu_s_per_1k_pairs)[len(bare) // 2]
    table.add_row("bare float32", f"{middle.cpu_s_per_1k_pairs:.1f}", "1.00", "", f"{middle.pairs_per_s:.0f}")
    for result in results:
        table.add_row(result.contender.name, *_cells(result))
    return table


def _cells(result: Result) -> list[str]:
    figures = result.figures
    if figures is None:
        return ["[red]-[/]"]
    return [
        f"{figures.cpu_s_per_1k_pairs:.1f}",
        f"{figures.ratio_to_bare:.2f}",
        "-" if figures.peak_share is None else f"{figures.peak_share:.2f}",
        f"{figures.pairs_per_s:.0f}",
        f"{figures.p50_s:.2f}",
        "-" if figures.wait_share is None else f"{figures.wait_share:.2f}",
        f"{figures.max_logit_error:.1g}",
        "[red]stopped[/]" if result.error else str(sum(figures.failures.values())),
    ]


if __name__ == "__main__":
    typer.run(main)
