"""`rerank-service batch`: files of pairs scored without a service. Words and options; the job is `offline/`'s."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from rerank_service.config import Dtype
from rerank_service.errors import BatchError, CheckpointError
from rerank_service.messages import Fitting, Truncate
from rerank_service.tools.batch.chunk_scorer import ChunkScorer, ScoringTask, peak_memory_bytes
from rerank_service.tools.batch.job import BatchJob, prepare
from rerank_service.tools.batch.parts import Parts
from rerank_service.tools.batch.sources import InputFiles
from rerank_service.tools.cli.console import fail, stdout
from rerank_service.tools.cli.model_choice import choose_model
from rerank_service.tools.cli.progress import ProgressBar, report_progress
from rerank_service.tools.cli.window_options import (
    DEFAULT_OVERLAP_TOKENS,
    MaxWindows,
    OverlapTokens,
    WindowTokens,
    passage_windows,
)

__all__ = ["batch"]

_SMALL_PAIRS = 20_000
"""Starting Ray and a model a core takes longer than scoring this here."""

Input = Annotated[Path, typer.Argument(metavar="INPUT", help=".jsonl, .csv, .tsv, .parquet, or a BEIR folder.")]
Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help=".jsonl, .csv, .parquet, or .trec for a TREC run.")]


def batch(
    input_path: Input,
    output: Output,
    model: str | None = typer.Option(None, help="Id in the configuration, or a checkpoint: package:NAME, a folder."),
    config: str = typer.Option("serve_config.yaml", help="Where the models are configured."),
    dtype: Dtype | None = typer.Option(None, help="Overrides the configuration's."),
    candidates: Path | None = typer.Option(None, help="With a BEIR folder: TREC run or qrels that name the pairs."),
    truncate: Truncate = typer.Option(Truncate.END, help="What happens to a pair longer than the window."),
    max_windows: MaxWindows = 1,
    window_tokens: WindowTokens = None,
    overlap_tokens: OverlapTokens = DEFAULT_OVERLAP_TOKENS,
    in_process: bool = typer.Option(False, "--in-process", help="Without Ray, in this process."),
    workers: int | None = typer.Option(None, min=1, help="Ray actors; as many as fit if not given."),
    address: str | None = typer.Option(None, help="Ray cluster; a Ray of its own on this machine if not given."),
    chunk_pairs: int = typer.Option(2_048, min=1, help="Pairs that are scored, kept and resumed as one."),
    force: bool = typer.Option(False, "--force", help="Replace an output that is there."),
    keep_parts: bool = typer.Option(False, "--keep-parts", help="Leave OUTPUT.parts when done."),
    as_json: bool = typer.Option(False, "--json", help="Print a summary as JSON when done."),
) -> None:
    """Score a file of queries and passages, of any size.

    Stopped or killed, the same command goes on where it was: nothing is lost or done twice.
    """
    started = time.monotonic()
    if in_process and (address or workers):
        raise fail("--in-process has no workers and no cluster")
    chosen = choose_model(model, config, dtype)
    parts = Parts(output)
    task = ScoringTask(
        InputFiles(input_path.absolute(), candidates and candidates.absolute(), parts.index),
        chosen,
        Fitting(truncate, windows=passage_windows(max_windows, window_tokens, overlap_tokens)),
    )
    job: BatchJob | None = None
    try:
        with _sigterm_is_ctrl_c(), parts, report_progress(scored="pairs", joined="pairs") as progress:
            job = prepare(task, output, parts, chunk_pairs, progress, overwrite=force)
            if job.missing:
                small = sum(chunk.num_pairs for chunk in job.missing) <= _SMALL_PAIRS
                on_ray = address is not None or workers is not None or not (in_process or small)
                _score(job, task, progress, on_ray, address, workers)
            job.finish(progress, keep_parts)
    except (BatchError, CheckpointError) as error:
        raise fail(escape(str(error))) from None
    except ImportError as error:
        raise fail(escape(f"{error.name} is missing: pip install 'rerank-service[batch]'")) from None
    except KeyboardInterrupt:
        raise _stopped(job, parts) from None
    _report(job, output, time.monotonic() - started, as_json)


def _score(
    job: BatchJob, task: ScoringTask, progress: ProgressBar, on_ray: bool, address: str | None, workers: int | None
) -> None:
    if not on_ray:
        scorer = ChunkScorer(task)
        job.score(lambda chunks: map(scorer.score, chunks), progress)
        return
    # Ray takes seconds, and what Ray Data needs comes with the extra `batch`.
    from rerank_service.tools.batch.ray_pool import PoolOptions, ray_session, score_on_ray

    with ray_session(address), _sigterm_is_ctrl_c():  # Ray sets a handler of its own
        pool = PoolOptions.for_cluster(task, workers)
        job.score(lambda chunks: score_on_ray(task, chunks, pool), progress)


@contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    """What schedulers send before they kill."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stopped(job: BatchJob | None, parts: Parts) -> typer.Exit:
    kept = 0 if job is None else job.summary.num_resumed_pairs + job.summary.num_scored_pairs
    where = f"{kept:,} pairs are kept in {parts.folder}: the same command goes on from there"
    typer.echo(f"stopped; {where if kept else 'no pair has been scored yet'}", err=True)
    return typer.Exit(130)


def _report(job: BatchJob, output: Path, wall_s: float, as_json: bool) -> None:
    summary = job.summary
    rate = summary.num_scored_pairs / wall_s
    if as_json:
        measured = {"wall_s": wall_s, "pairs_per_s": rate, "peak_memory_bytes": peak_memory_bytes()}
        typer.echo(json.dumps({"output": str(output), **asdict(summary), **measured}))
        return
    resumed = f", {summary.num_resumed_pairs:,} of them from before" if summary.num_resumed_pairs else ""
    cut = f"; {summary.num_truncated_pairs:,} cut to the window" if summary.num_truncated_pairs else ""
    if summary.num_unscored_pairs:
        cut += f", {summary.num_unscored_pairs:,} of them without any of the passage: their queries fill the window"
    line = f"{output}: {summary.num_pairs:,} pairs{resumed}, {wall_s:.1f} s, {rate:,.0f} pairs/s, {summary.engine}{cut}"
    stdout.print(line, markup=False, highlight=False, soft_wrap=True)
