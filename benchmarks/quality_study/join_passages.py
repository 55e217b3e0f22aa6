"""Makes a collection of long passages from short ones: each long passage joins several short passages in random order.

A long passage is as relevant to a query as its most relevant part, which may be at any place.
"""

import json
import random
from pathlib import Path
from shutil import copyfile

__all__ = ["join_corpus", "join_passages", "join_qrels"]


def join_corpus(lines: list[str], num_passages: int, seed: int) -> tuple[list[str], dict[str, str]]:
    """Lines of the new corpus, and the id of the long passage that contains each short passage."""
    rows = [json.loads(line) for line in lines]
    random.Random(seed).shuffle(rows)  # noqa: S311 - an order, not a secret
    joined, places = [], {}
    for start in range(0, len(rows), num_passages):
        parts = rows[start : start + num_passages]
        name = f"joined-{start // num_passages}"
        places |= {part["_id"]: name for part in parts}
        text = "\n\n".join(" ".join(filter(None, (part.get("title"), part["text"]))) for part in parts)
        joined.append(json.dumps({"_id": name, "title": "", "text": text}, ensure_ascii=False))
    return joined, places


def join_qrels(lines: list[str], places: dict[str, str]) -> list[str]:
    """Qrels of the long passages, with a header line."""
    header, *rows = lines
    best: dict[tuple[str, str], int] = {}
    for query_id, passage_id, relevance in (row.split("\t") for row in rows):
        key = query_id, places[passage_id]
        best[key] = max(best.get(key, 0), int(relevance))
    return [header, *(f"{query_id}\t{name}\t{relevance}" for (query_id, name), relevance in best.items())]


def join_passages(folder: Path, output: Path, num_passages: int, seed: int) -> Path:
    """Writes the collection of long passages to the folder `output` and returns this folder."""
    output.mkdir(parents=True, exist_ok=True)
    joined, places = join_corpus(_lines(folder / "corpus.jsonl"), num_passages, seed)
    _write(output / "corpus.jsonl", joined)
    _write(output / "qrels.tsv", join_qrels(_lines(folder / "qrels.tsv"), places))
    copyfile(folder / "queries.jsonl", output / "queries.jsonl")
    return output


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
