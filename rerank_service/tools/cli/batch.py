"""`rerank-service batch`: scores files of pairs without a service. This file has the options and messages;
`tools.batch` does the work."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rerank_service.config import Dtype
from rerank_service.messages import Fitting, Truncate
from rerank_service.tools.batch.chunk_scorer import ChunkScorer, ScoringTask, peak_memory_bytes
from rerank_service.tools.batch.job import BatchJob, prepare
from rerank_service.tools.batch.parts import Parts
from rerank_service.tools.batch.sources import InputFiles
from rerank_service.tools.cli.console import DTYPE_HELP, MODEL_HELP, fail, say
from rerank_service.tools.cli.options import (
    DEFAULT_OVERLAP_TOKENS,
    ConfigOption,
    MaxWindows,
    OverlapTokens,
    WindowTokens,
    choose_model,
    passage_windows,
)
from rerank_service.tools.cli.progress import ProgressBar

__all__ = ["batch"]

_SMALL_PAIRS = 20_000
"""Scoring this many pairs in one process takes less time than starting Ray with one model per core."""

Input = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT", help="File of queries and passages: .jsonl, .csv, .tsv or .parquet; or a BEIR folder."
    ),
]
Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="File for the scores: .jsonl, .csv, .parquet or .trec.")]


def batch(
    input_path: Input,
    output: Output,
    model: str | None = typer.Option(None, help=MODEL_HELP),
    config: ConfigOption = None,
    dtype: Dtype | None = typer.Option(None, help=DTYPE_HELP),
    candidates: Path | None = typer.Option(None, help="For a BEIR folder: TREC run or qrels with the pairs to score."),
    truncate: Truncate = typer.Option(Truncate.END, help="For a pair that is too long: END truncates it, NONE fails."),
    max_windows: MaxWindows = 1,
    window_tokens: WindowTokens = None,
    overlap_tokens: OverlapTokens = DEFAULT_OVERLAP_TOKENS,
    in_process: bool = typer.Option(False, "--in-process", help="Score in this process, without Ray."),
    workers: int | None = typer.Option(None, min=1, help="Number of Ray workers; by default, as many as fit."),
    address: str | None = typer.Option(
        None, help="Address of a Ray cluster; by default, a large job starts a local Ray."
    ),
    chunk_pairs: int = typer.Option(
        2_048, min=1, help="Number of pairs saved at a time; a restart repeats an unsaved chunk."
    ),
    force: bool = typer.Option(False, "--force", help="Replace an existing output."),
    keep_parts: bool = typer.Option(False, "--keep-parts", help="Keep the folder OUTPUT.parts when the job is done."),
    as_json: bool = typer.Option(False, "--json", help="Print a summary as JSON at the end."),
) -> None:
    """Score a file of queries and passages, of any size.

    No service needs to run. If the command is stopped or killed, run it again to resume: the output has every pair
    once.
    """
    started = time.monotonic()
    if in_process and (address or workers):
        raise fail("--in-process cannot be combined with --workers or --address")
    parts = Parts(output)
    files = InputFiles(input_path.absolute(), candidates and candidates.absolute(), parts.index)
    windows = passage_windows(max_windows, window_tokens, overlap_tokens)
    task = ScoringTask(files, choose_model(model, config, dtype), Fitting(truncate, windows=windows))
    job: BatchJob | None = None
    try:
        with _interrupt_on_sigterm(), parts, ProgressBar(scored="pairs", joined="pairs") as progress:
            job = prepare(task, output, parts, chunk_pairs, progress, overwrite=force)
            if job.missing:
                _score(job, task, progress, in_process, address, workers)
            job.finish(progress, keep_parts)
    except KeyboardInterrupt:
        raise _stopped(job, parts) from None
    _report(job, output, time.monotonic() - started, as_json)


def _score(
    job: BatchJob, task: ScoringTask, progress: ProgressBar, in_process: bool, address: str | None, workers: int | None
) -> None:
    is_small = sum(chunk.num_pairs for chunk in job.missing) <= _SMALL_PAIRS
    if in_process or (is_small and address is None and workers is None):
        scorer = ChunkScorer(task)
        job.score(lambda chunks: map(scorer.score, chunks), progress)
        return
    # Importing Ray takes seconds, and Ray Data needs the extra `tools`.
    from rerank_service.tools.batch.ray_pool import PoolOptions, ray_session, score_on_ray

    with ray_session(address), _interrupt_on_sigterm():  # ray.init sets its own handler
        pool = PoolOptions.for_cluster(task, workers)
        job.score(lambda chunks: score_on_ray(task, chunks, pool), progress)


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM act like Ctrl-C; schedulers send SIGTERM before they kill a process."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stopped(job: BatchJob | None, parts: Parts) -> typer.Exit:
    kept = 0 if job is None else job.summary.num_resumed_pairs + job.summary.num_scored_pairs
    where = f"{kept:,} scored pairs are kept in {parts.folder}; run the same command to resume"
    typer.echo(f"stopped; {where if kept else 'no pair has been scored yet'}", err=True)
    return typer.Exit(130)


def _report(job: BatchJob, output: Path, wall_s: float, as_json: bool) -> None:
    summary = job.summary
    rate = summary.num_scored_pairs / wall_s
    if as_json:
        measured = {"wall_s": wall_s, "pairs_per_s": rate, "peak_memory_bytes": peak_memory_bytes()}
        typer.echo(json.dumps({"output": str(output), **asdict(summary), **measured}))
        return
    resumed = f", {summary.num_resumed_pairs:,} of them scored by an earlier run" if summary.num_resumed_pairs else ""
    cut = f"; {summary.num_truncated_pairs:,} truncated to the window" if summary.num_truncated_pairs else ""
    if summary.num_unscored_pairs:
        cut += f", {summary.num_unscored_pairs:,} of them with a query that fills the window"
    say(f"{output}: {summary.num_pairs:,} pairs{resumed}, {wall_s:.1f} s, {rate:,.0f} pairs/s, {summary.engine}{cut}")
