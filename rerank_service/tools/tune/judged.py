"""Reads judged queries: a BEIR folder, or a JSONL file with one judged pair per line."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rerank_service.errors import BatchError
from rerank_service.tools.batch.records import query_text
from rerank_service.tools.batch.text_files import json_rows
from rerank_service.tools.evaluation.collection import Collection, read_collection

__all__ = ["only", "read_judged"]


def read_judged(path: Path) -> Collection:
    """Queries that have a relevant passage. Raises `BatchError` with file, line and field.

    A pair is `{"query": ..., "passage": ..., "relevance": 1}`; without `relevance`, the passage is relevant. Equal
    texts are one query or one passage. Judgements of passages that a BEIR folder lacks are ignored.
    """
    if not path.is_dir():
        return _read_pairs(path)
    folder = read_collection(path)
    known = {
        query_id: {
            passage: grade for passage, grade in folder.relevance[query_id].items() if passage in folder.passages
        }
        for query_id in folder.queries
    }
    judged = replace(folder, relevance=known)
    return only(judged, (query_id for query_id, grades in known.items() if max(grades.values(), default=0) > 0))


def only(collection: Collection, queries: Iterable[str]) -> Collection:
    """The collection with these queries alone. Raises `BatchError` if there are none."""
    chosen = {query_id: collection.queries[query_id] for query_id in queries}
    if not chosen:
        raise BatchError(f"{collection.name} has no query with a relevant passage")
    return replace(collection, queries=chosen, relevance={one: collection.relevance[one] for one in chosen})


def _read_pairs(path: Path) -> Collection:
    query_ids: dict[str, str] = {}
    passage_ids: dict[str, str] = {}
    relevance: dict[str, dict[str, int]] = defaultdict(dict)
    for position, row in json_rows(path):
        place = f"{path}, line {position.number}"
        query_id = query_ids.setdefault(query_text(_text(row, "query", place), f"{place}: query"), f"q{len(query_ids)}")
        passage_id = passage_ids.setdefault(_text(row, "passage", place), f"p{len(passage_ids)}")
        grade = row.get("relevance", 1)
        if isinstance(grade, bool) or not isinstance(grade, int) or grade < 0:
            raise BatchError(f"{place}: relevance is not an integer of 0 or more")
        if relevance[query_id].setdefault(passage_id, grade) != grade:
            raise BatchError(f"{place}: relevance contradicts an earlier line with the same query and passage")
    queries = {query_id: text for text, query_id in query_ids.items()}
    passages = {passage_id: text for text, passage_id in passage_ids.items()}
    judged = Collection(path.name.partition(".")[0], passages, queries, dict(relevance))
    return only(judged, (query_id for query_id, grades in relevance.items() if max(grades.values()) > 0))


def _text(row: dict[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise BatchError(f"{place}: {name} is {'missing' if value is None else 'not text'}")
    return value
