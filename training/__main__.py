"""`python -m training GROUPS OUT` turns training groups into judged queries that `rerank-service tune` reads.

A group is a query with the passage that answers it and hard negatives. `OUT/train` has queries of three sources, and
`OUT/dev` has queries of a fourth source, because a dev set of the trained sources does not show when to stop.
`OUT/medquad.jsonl` is a sample of one domain.
"""

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

__all__ = ["Group", "main", "read_groups", "write_folder", "write_pairs"]

_TRAIN = {"squad": 1600, "medquad": 960, "nq": 640}
"""Number of queries of each source. QAMR is excluded because its questions lack context."""
_DEV = {"debian": 150}
_NUM_SAMPLE = 600
_SEED = 7


class Group(NamedTuple):
    """A query, the passage that answers it, and passages that do not."""

    query: str
    positive: str
    negatives: tuple[str, ...]


def read_groups(path: Path, sources: Sequence[str]) -> dict[str, list[Group]]:
    """The groups of each source, from a gzipped file with lines `{"src", "q", "pos", "negs"}`. Groups whose negatives
    contain the answer are left out."""
    found: dict[str, list[Group]] = {source: [] for source in sources}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["src"] in found and row["pos"] not in row["negs"]:
                found[row["src"]].append(Group(row["q"], row["pos"], tuple(row["negs"])))
    return found


def write_folder(folder: Path, groups: Mapping[str, Sequence[Group]], numbers: Mapping[str, int]) -> None:
    """Writes a BEIR folder with `numbers` of the groups of each source, drawn at random with a fixed seed. Negatives
    are in the corpus, but not judged, so they are mined like all other passages."""
    generator = random.Random(_SEED)  # noqa: S311 - not for secrets
    chosen = [group for source, number in numbers.items() for group in generator.sample(groups[source], number)]
    passages = dict.fromkeys(text for group in chosen for text in (group.positive, *group.negatives))
    ids = {text: f"p{index}" for index, text in enumerate(passages)}
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "corpus.jsonl", [{"_id": one, "text": text} for text, one in ids.items()])
    _write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": group.query} for n, group in enumerate(chosen)])
    judged = (f"q{n}\t{ids[group.positive]}\t1\n" for n, group in enumerate(chosen))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged), encoding="utf-8")


def write_pairs(path: Path, groups: Sequence[Group], number: int) -> None:
    """Writes `number` of the groups, drawn at random with a fixed seed, as judged pairs. A passage that answers a query
    in another group is no negative of it."""
    rows: list[dict[str, Any]] = []
    chosen = random.Random(_SEED).sample(groups, number)  # noqa: S311 - not for secrets
    answers = {(query, positive) for query, positive, _ in chosen}
    for query, positive, negatives in chosen:
        rows.append({"query": query, "passage": positive})
        rivals = [text for text in dict.fromkeys(negatives) if (query, text) not in answers]
        rows += [{"query": query, "passage": text, "relevance": 0} for text in rivals]
    _write(path, rows)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(
    groups: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="groups.jsonl.gz")],
    out: Annotated[Path, typer.Argument(file_okay=False, help="Folder for `train` and `dev`.")],
) -> None:
    """Writes the folders for training and for choices, and a sample of one domain."""
    found = read_groups(groups, [*_TRAIN, *_DEV])
    write_folder(out / "train", found, _TRAIN)
    write_folder(out / "dev", found, _DEV)
    write_pairs(out / "medquad.jsonl", found["medquad"], _NUM_SAMPLE)


if __name__ == "__main__":
    typer.run(main)
