"""`rerank-service calibrate`: measures a map from logits to probabilities. This file has the options and tables;
`tools.calibrate` measures."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from rerank_service.config import CalibrationConfig, Dtype
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
from rerank_service.tools.files import file_problem

if TYPE_CHECKING:
    from rerank_service.tools.calibrate.calibrate import Calibrated
    from rerank_service.tools.evaluation.evaluate import Task

__all__ = ["calibrate_command"]

_OUTPUT = Path("calibration.json")
_PLOT_SUFFIXES = (".png", ".svg", ".pdf")


class Method(StrEnum):
    """Kinds of maps."""

    AUTO = "auto"
    PLATT = "platt"
    ISOTONIC = "isotonic"


Queries = Annotated[
    Path,
    typer.Option(help="Judged queries: queries.jsonl {_id, text}, or a folder in BEIR's format that has this file."),
]
Qrels = Annotated[
    Path | None, typer.Option(help="File that says which passages are relevant; by default, qrels next to the queries.")
]
Corpus = Annotated[
    Path | None, typer.Option(help="Passages: corpus.jsonl {_id, title, text}; by default, next to the queries.")
]
Run = Annotated[
    Path | None,
    typer.Option(
        help="TREC run with the candidates, best from your own first stage; by default, BM25's best passages."
    ),
]
JudgedOnly = Annotated[
    bool, typer.Option("--judged-only", help="Leave out candidates without a judgement; else they count as irrelevant.")
]
MaxQueries = Annotated[int | None, typer.Option(min=1, help="Number of queries to use, from the first; default: all.")]
MethodOption = Annotated[Method, typer.Option(help="auto: isotonic if it is better on held-out queries, else platt.")]
MinGrade = Annotated[int, typer.Option(min=1, help="Lowest grade of a relevant passage.")]


def calibrate_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP.partition(" Default:")[0])],
    queries: Queries,
    qrels: Qrels = None,
    corpus: Corpus = None,
    run: Run = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of candidates per query.")] = 100,
    judged_only: JudgedOnly = False,
    min_grade: MinGrade = 1,
    max_queries: MaxQueries = None,
    method: MethodOption = Method.AUTO,
    config: ConfigOption = None,
    dtype: Annotated[Dtype | None, typer.Option(help=DTYPE_HELP)] = None,
    max_windows: MaxWindows = 1,
    window_tokens: WindowTokens = None,
    overlap_tokens: OverlapTokens = DEFAULT_OVERLAP_TOKENS,
    output: Annotated[Path, typer.Option(help="File for the map, for models[].calibration.")] = _OUTPUT,
    plot: Annotated[Path | None, typer.Option(help="Draw the reliability plot: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Turn a model's logits into probabilities, by judged queries.

    Writes a map for models[].calibration. The figures are measured on held-out queries. Exit code 1: the probabilities
    are not shown to be better than sigmoid(logit). Example: rerank-service calibrate all-MiniLM-L6-v2 --queries
    my-dataset
    """
    _check_outputs(output, plot)
    chosen = choose_model(model, config, dtype)
    # imported here, because torch takes seconds and the other modules need the extra `tools`
    from rerank_service.tools.calibrate.calibrate import calibrate
    from rerank_service.tools.calibrate.plot import plot as draw

    with ProgressBar(**{chosen.id: "pairs"}) as progress:
        task = _task(queries, qrels, corpus, run, top_k, max_queries, judged_only)
        windows = passage_windows(max_windows, window_tokens, overlap_tokens)
        result = calibrate(chosen, task, None if method is Method.AUTO else method.value, min_grade, windows, progress)
    _write(result.calibration, output)
    if plot is not None:
        draw(result, f"{chosen.id} on {task.collection.name}", plot)
    if as_json:
        typer.echo(json.dumps(_figures(result) | {"model": chosen.id, "output": str(output)}))
    else:
        _show(result, task, chosen.id, output)
    if result.gain.low <= 0:
        raise typer.Exit(1)


def _check_outputs(output: Path, plot: Path | None) -> None:
    """Ends the program now rather than after an hour of scoring."""
    if plot is not None and plot.suffix.lower() not in _PLOT_SUFFIXES:
        raise fail(f"{plot} must end in one of {', '.join(_PLOT_SUFFIXES)}")
    for path in filter(None, (output, plot)):
        if path.is_dir():
            raise fail(f"{path} cannot be written: it is a folder")
        if not path.absolute().parent.is_dir():
            raise fail(f"{path} cannot be written: {path.parent} is not a folder")


def _task(
    queries: Path,
    qrels: Path | None,
    corpus: Path | None,
    run: Path | None,
    top_k: int,
    max_queries: int | None,
    judged_only: bool,
) -> Task:
    from dataclasses import replace

    from rerank_service.tools.calibrate.pairs import judged_only as with_judgement
    from rerank_service.tools.evaluation.collection import read_collection
    from rerank_service.tools.evaluation.evaluate import prepare_task

    if not queries.exists():
        raise fail(f"{queries} does not exist")
    folder, file = (queries, None) if queries.is_dir() else (queries.parent, queries)
    collection = read_collection(folder, qrels, max_queries, queries=file, corpus=corpus, with_unanswered=True)
    task = prepare_task(collection, top_k, run)
    if judged_only and task.chosen_by != "judged":
        candidates = with_judgement(collection, task.candidates)
        return replace(task, candidates=candidates, chosen_by=f"{task.chosen_by}, judged only")
    return task


def _write(calibration: CalibrationConfig, output: Path) -> None:
    """Writes JSON with one point per line, which is valid YAML too."""
    points = ",\n".join(f"    {json.dumps(point)}" for point in calibration.points)
    rest = ",\n".join(f'  "{name}": {json.dumps(getattr(calibration, name))}' for name in ("slope", "origin"))
    try:
        output.write_text(f'{{\n  "points": [\n{points}\n  ],\n{rest}\n}}\n', encoding="utf-8")
    except OSError as error:
        raise fail(file_problem(error, output, is_output=True)) from None


def _figures(result: Calibrated) -> dict[str, Any]:
    def rows(measures: Any) -> Any:
        return {name: one._asdict() for name, one in measures.items()}

    return asdict(result) | {
        "calibration": result.calibration.model_dump(),
        "sigmoid": rows(result.sigmoid),
        "calibrated": rows(result.calibrated),
        "gain": result.gain._asdict(),
        "thresholds": [
            row._asdict() | {"logit": result.calibration.logit_at(row.probability)} for row in result.thresholds
        ],
        "sigmoid_bins": [one._asdict() for one in result.sigmoid_bins],
        "calibrated_bins": [one._asdict() for one in result.calibrated_bins],
    }


def _show(result: Calibrated, task: Task, model_id: str, output: Path) -> None:
    share = result.num_relevant / result.num_pairs
    say(
        f"{task.collection.name}: {result.num_queries:,} queries, {result.num_pairs:,} pairs, candidates "
        f"{task.chosen_by}, {share:.1%} relevant"
    )
    points = len(result.calibration.points)
    say(f"Map: {result.method}, {points} point{'s' * (points > 1)}. Figures are of held-out queries.")
    stdout.print("", _measures_table(result), "", _thresholds_table(result), "", sep="\n")
    gain = f"log loss lower by {result.gain.mean:.4f} ({result.gain.low:.4f} to {result.gain.high:.4f})"
    if result.gain.low > 0:
        say(f"Better than sigmoid(logit): {gain}.")
    else:
        say(f"Not shown to be better than sigmoid(logit): {gain}. Add judged queries, or do not use the map.")
    say(f"Wrote {output}. To use it, set `calibration` in the entry of {model_id} to the file's path or content.")


def _measures_table(result: Calibrated) -> Table:
    names = ("sigmoid", "95% interval", "calibrated", "95% interval")
    table = _table("0 is best", *names)
    for name, before in result.sigmoid.items():
        after = result.calibrated[name]
        cells = (f"{one.mean:.4f}" if part == 0 else f"{one.low:.4f}-{one.high:.4f}"
                 for one in (before, after) for part in (0, 1))  # fmt: skip
        table.add_row(name, *cells)
    return table


def _thresholds_table(result: Calibrated) -> Table:
    table = _table("min_probability", "logit", "precision", "recall", "kept per query", "queries left empty")
    for row in result.thresholds:
        table.add_row(
            f"{row.probability:g}",
            f"{result.calibration.logit_at(row.probability):.2f}",
            "-" if row.precision is None else f"{row.precision:.3f}",
            f"{row.recall:.3f}",
            f"{row.kept_per_query:.1f}",
            f"{row.empty_queries:.1%}",
        )
    return table


def _table(first: str, *others: str) -> Table:
    return Table(Column(first), *(Column(name, justify="right") for name in others), box=None, pad_edge=False)
