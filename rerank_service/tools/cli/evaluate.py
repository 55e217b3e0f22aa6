"""`rerank-service eval`: measures quality and speed of models on judged queries. This file has the options and tables;
`tools.evaluation` measures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from rerank_service.config import Dtype
from rerank_service.tools.cli.console import DTYPE_HELP, MODEL_HELP, fail, say, stdout
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

if TYPE_CHECKING:
    from rerank_service.tools.evaluation.evaluate import Evaluation

__all__ = ["evaluate_command"]

_PLOT_SUFFIXES = (".png", ".svg", ".pdf")

Folder = Annotated[
    Path, typer.Argument(metavar="DATASET", help="Folder in BEIR's format: corpus.jsonl, queries.jsonl and qrels.")
]

Models = Annotated[list[str] | None, typer.Option(help=f"{MODEL_HELP} Repeat the option to compare models.")]
Qrels = Annotated[
    Path | None, typer.Option(help="File that says which passages are relevant; by default the folder's qrels.")
]
RecallAt = Annotated[
    list[int] | None,
    typer.Option(min=1, help="Measure recall among this many best passages; repeatable. Default: 5 and 10."),
]


def evaluate_command(
    dataset: Folder,
    model: Models = None,
    config: ConfigOption = None,
    dtype: Annotated[Dtype | None, typer.Option(help=DTYPE_HELP)] = None,
    qrels: Qrels = None,
    run: Annotated[
        Path | None, typer.Option(help="TREC run with the passages to rank; by default, BM25's best passages.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of passages to rank per query.")] = 100,
    recall_at: RecallAt = None,
    max_queries: Annotated[
        int | None, typer.Option(min=1, help="Number of queries to use, from the first; default: all.")
    ] = None,
    max_windows: MaxWindows = 1,
    window_tokens: WindowTokens = None,
    overlap_tokens: OverlapTokens = DEFAULT_OVERLAP_TOKENS,
    plot: Annotated[Path | None, typer.Option(help="Draw quality against speed: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Compare models on judged queries.

    The dataset says which passages are relevant to each query. The measures are nDCG@10, MRR@10 and recall: 1 is
    perfect. BM25 and NVIDIA's published figures are shown for comparison.
    """
    if plot is not None and plot.suffix.lower() not in _PLOT_SUFFIXES:
        raise fail(f"{plot} must end in one of {', '.join(_PLOT_SUFFIXES)}")
    if plot is not None and not plot.absolute().parent.is_dir():  # fail now, not after an hour of scoring
        raise fail(f"{plot} cannot be written: {plot.parent} is not a folder")
    models = [choose_model(name, config, dtype) for name in (model or (None,))]
    # imported here, because torch takes seconds and the other modules need the extra `tools`
    from rerank_service.tools.evaluation.collection import read_collection
    from rerank_service.tools.evaluation.evaluate import evaluate, prepare_task
    from rerank_service.tools.evaluation.plot import plot as draw

    with ProgressBar(**{one.id: "pairs" for one in models}) as progress:
        task = prepare_task(read_collection(dataset, qrels, max_queries), top_k, run)
        windows = passage_windows(max_windows, window_tokens, overlap_tokens)
        evaluation = evaluate(task, models, recall_at or [5, 10], progress, windows)
    if plot is not None:
        draw(evaluation, plot)
    _show(evaluation, as_json)


def _show(evaluation: Evaluation, as_json: bool) -> None:
    from rerank_service.tools.evaluation.published import PUBLISHED

    if as_json:
        models = [
            asdict(row) | {"quality": {name: one._asdict() for name, one in row.quality.items()}}
            for row in evaluation.models
        ]
        published = [row._asdict() for row in PUBLISHED]
        typer.echo(json.dumps(asdict(evaluation) | {"models": models, "published": published}))
        return
    stdout.print(_table(evaluation))
    for model in evaluation.models:
        if model.truncated_pairs:
            truncated = f"{model.model}: {model.truncated_pairs:.1%} of the pairs were truncated to the window"
            unscored = (
                f", {model.unscored_pairs:.1%} have a query that fills the window" if model.unscored_pairs else ""
            )
            say(truncated + unscored)
    table = Table(
        *(Column(name, overflow="fold") for name in ("model", "first stage")),
        *(Column(name, no_wrap=True) for name in ("measure", "value")),
        title="Figures published by others, for different corpora and first stages",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for row in PUBLISHED:
        table.add_row(row.model, row.first_stage, row.measure, f"{row.value:.4f}")
    stdout.print("", table, sep="\n")
    for collections, source in dict.fromkeys((row.collections, row.source) for row in PUBLISHED):
        say(f"Mean over {collections}. Source: {source}")


def _table(evaluation: Evaluation) -> Table:
    """One row per model and measure, so that the table fits 80 columns however many measures it has."""
    title = (
        f"{evaluation.collection}: {evaluation.num_queries:,} queries, {evaluation.num_passages:,} passages, "
        f"candidates {evaluation.candidates}; {evaluation.queries_with_a_relevant_candidate:.1%} of the queries have a "
        "relevant candidate"
    )
    table = Table(
        Column("model", overflow="fold"),
        Column("measure", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in ("mean", "95% interval", "pairs/s")),
        title=title,
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for row in evaluation.models:
        model, speed = row.model, "" if row.pairs_per_s is None else f"{row.pairs_per_s:,.0f}"
        for measure, (mean, low, high) in row.quality.items():
            table.add_row(Text(model), measure, f"{mean:.3f}", f"{low:.3f}-{high:.3f}", speed)
            model = speed = ""  # shown once per model
    return table
