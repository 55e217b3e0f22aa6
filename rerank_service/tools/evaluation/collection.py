"""Judged queries and their corpus in memory, read from a BEIR folder (arXiv 2104.08663)."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from rerank_service.errors import BatchError
from rerank_service.tools.batch.beir import CORPUS, QUERIES, candidates, field, passage_text
from rerank_service.tools.batch.records import query_text
from rerank_service.tools.batch.text_files import json_rows

__all__ = ["Collection", "read_collection"]

_QRELS = ("qrels.tsv", "qrels/test.tsv", "qrels.txt", "qrels.trec")


@dataclass(frozen=True)
class Collection:
    """Judged queries over a corpus."""

    name: str
    passages: dict[str, str]
    queries: dict[str, str]
    relevance: dict[str, dict[str, int]]
    """Relevance grades, by query id and passage id."""

    @property
    def brings_candidates(self) -> bool:
        """Whether every query has several judged passages; the judged passages are then its candidates."""
        return all(len(self.relevance[query_id]) > 1 for query_id in self.queries)


def read_collection(
    folder: Path,
    qrels: Path | None = None,
    max_queries: int | None = None,
    *,
    queries: Path | None = None,
    corpus: Path | None = None,
    with_unanswered: bool = False,
) -> Collection:
    """Reads a BEIR folder, with at most `max_queries` queries. `queries`, `corpus` and `qrels` replace the folder's
    files. With `with_unanswered`, queries whose judged passages are all irrelevant are kept.

    Raises `BatchError` with file, line and field.
    """
    present = [folder / name for name in _QRELS if (folder / name).is_file()]
    if qrels is None and not present:
        raise BatchError(f"{folder} has none of {', '.join(_QRELS)}; use --qrels to name another file")
    relevance = _read_qrels(qrels or present[0])
    passages: dict[str, str] = {}
    asked: dict[str, str] = {}
    corpus, queries = corpus or folder / CORPUS, queries or folder / QUERIES
    for position, row in json_rows(corpus):
        place = f"{corpus}, line {position.number}"
        passages[field(row, "_id", place)] = passage_text(row, place)
    for position, row in json_rows(queries):
        if len(asked) == max_queries:
            break
        place = f"{queries}, line {position.number}"
        query_id, text = field(row, "_id", place), field(row, "text", place)
        grades = relevance.get(query_id, {}).values()
        if max(grades, default=0) > 0 or (with_unanswered and grades):
            asked[query_id] = query_text(text, f"{place}: text")
    if not asked:
        judged = "judged query" if with_unanswered else "query with a relevant passage"
        raise BatchError(f"{folder} has no {judged}: check that queries and qrels use the same ids")
    return Collection(folder.resolve().name, passages, asked, relevance)


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    relevance: dict[str, dict[str, int]] = defaultdict(dict)
    for judgement in candidates(path):
        try:
            relevance[judgement.query_id][judgement.passage_id] = int(judgement.value)
        except ValueError:
            place = f"{path}, line {judgement.position.number}"
            raise BatchError(f"{place}: relevance {judgement.value!r} is not an integer") from None
    return dict(relevance)
