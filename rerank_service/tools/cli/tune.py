"""`rerank-service tune`: trains a model on judged queries. This file has the options and tables; `tools.tune` trains
and judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Column, Table
from rich.text import Text

from rerank_service.tools.cli.console import MODEL_HELP, say, stdout
from rerank_service.tools.cli.options import ConfigOption, choose_model
from rerank_service.tools.cli.progress import ProgressBar

if TYPE_CHECKING:
    from rerank_service.config import ModelConfig

__all__ = ["tune_command"]

_JUDGED_HELP = (
    "a BEIR folder (corpus.jsonl, queries.jsonl, qrels), or a JSONL file of pairs with query, passage and, optionally, "
    "relevance (0: not relevant)"
)

Model = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Train = Annotated[Path, typer.Option(help=f"Judged queries: {_JUDGED_HELP}.")]
Dev = Annotated[Path | None, typer.Option(help="Judged queries for choices during tuning; default: a part of --train.")]
HeldOut = Annotated[
    list[Path] | None,
    typer.Option(help="Judged queries for the final verdict; repeatable. Default: a part of --train."),
]
Output = Annotated[Path, typer.Option(help="New folder for the tuned checkpoint, or the folder of an unfinished run.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to use on a CPU; default: the model's own.")]


def tune_command(
    train: Train,
    output: Output,
    model: Model = None,
    dev: Dev = None,
    held_out: HeldOut = None,
    config: ConfigOption = None,
    method: Annotated[
        Literal["lora", "head"],
        typer.Option(help="What to train: low-rank changes of all layers and the head, or the head alone."),
    ] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the changes.")] = 16,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of steps; default: three rounds over the queries, at most 400.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.0, help="Highest learning rate.")] = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries per step.")] = 8,
    passages: Annotated[
        int | None,
        typer.Option(min=2, help="Passages per query and step; default: 4 for late interaction, else 8."),
    ] = None,
    mined: Annotated[int, typer.Option(min=0, help="Unjudged passages per query that BM25 mines as negatives.")] = 20,
    top_k: Annotated[int, typer.Option(min=1, help="BM25's passages to rank per held-out query.")] = 50,
    seed: Annotated[int, typer.Option(help="The same seed gives the same split and the same training.")] = 0,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train a model on your own judged queries.

    The queries are split: most train the model, some choose how much of the change to keep, and some are held out. At
    the end, the held-out queries judge the tuned model once. An interrupted run continues if you repeat the command.
    """
    settings = choose_model(model, config)
    if threads is not None:
        settings = settings.model_copy(update={"engine": settings.engine.model_copy(update={"num_threads": threads})})
    # imported here, because torch takes seconds and the other modules need the extra `tools`
    from rerank_service.tools.tune.judged import read_judged
    from rerank_service.tools.tune.tune import TuneOptions, tune

    options = TuneOptions(method, rank, steps, rate, queries, passages, mined, top_k, seed)
    judged = [read_judged(path) for path in held_out or ()]
    stages = {"training": "steps", "dev": "pairs", "held-out, before": "pairs", "held-out, after": "pairs"}
    with ProgressBar(**stages) as progress:
        report = tune(
            settings, read_judged(train), None if dev is None else read_judged(dev), judged, output, options, progress
        )
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _show(report, settings, output)
    if not report["is_better"]:
        raise typer.Exit(1)


def _show(report: dict[str, Any], model: ModelConfig, output: Path) -> None:
    say(
        f"{model.id}: trained on {report['num_train_queries']:,} queries in {report['num_steps']:,} steps; the loss "
        f"went from {report['loss'][0]:.3f} to {report['loss'][1]:.3f}"
    )
    if report["num_left_out"]:
        say(f"{report['num_left_out']:,} queries were left out, because they are linked to a dev or held-out query")
    shares = ", ".join(f"{float(share):.0%} {value:.3f}" for share, value in report["dev"].items())
    say(f"nDCG@10 on {report['num_dev_queries']:,} dev queries, by share of the change: {shares}")
    if report["held_out"] is None:
        say("No share is better than the original model. Nothing was written, and the held-out queries stay unused.")
        return
    stdout.print("", _table(report["held_out"]), "", sep="\n")
    if not report["is_better"]:
        say("Do not use it: the 95% interval of the difference is not above 0.")
    elif _has_own_settings(model):
        say(f"Better. To serve it, set checkpoint.source of {model.id} to {output.absolute()}")
    else:
        say(f"Better. To serve it: rerank-service serve NAME={output.absolute()}")


def _table(held_out: dict[str, Any]) -> Table:
    table = Table(
        Column("held out", overflow="fold"),
        *(Column(name, justify="right", no_wrap=True) for name in ("queries", "before", "after", "difference")),
        Column("95% interval", no_wrap=True),
        title="nDCG@10",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for row in held_out["sets"]:
        figures = (f"{row['num_queries']:,}", f"{row['before']:.3f}", f"{row['after']:.3f}")
        table.add_row(Text(row["name"]), *figures, *_difference(row["difference"]))
    if len(held_out["sets"]) > 1:
        table.add_row("mean", "", "", "", *_difference(held_out["difference"]))
    return table


def _difference(figure: dict[str, float]) -> tuple[str, str]:
    return f"{figure['mean']:+.3f}", f"{figure['low']:+.3f} to {figure['high']:+.3f}"


def _has_own_settings(model: ModelConfig) -> bool:
    """Whether the model's settings say how to read its files, so a folder alone would be read differently."""
    own = {
        *("kind", "pooling", "temperature", "prompt_template", "yes_no", "yes_no_prompt", "instruction", "head"),
        *("query_tokens", "num_layers", "special_tokens"),
    }
    return model.window_tokens is not None or bool(own & model.engine.model_dump(exclude_defaults=True).keys())
