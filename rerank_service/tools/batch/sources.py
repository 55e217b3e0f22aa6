"""Which source reads an input. What it is asked for travels to other processes; what is open does not."""

from dataclasses import dataclass
from pathlib import Path

from rerank_service.errors import BatchError
from rerank_service.tools.batch.beir import CORPUS, QUERIES, BeirCandidates
from rerank_service.tools.batch.records import Source
from rerank_service.tools.batch.text_files import CsvFile, JsonlFile

__all__ = ["INPUT_SUFFIXES", "InputFiles", "open_source"]

INPUT_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class InputFiles:
    """An input by its paths."""

    path: Path
    """A file of rows, or a BEIR folder."""
    candidates: Path | None
    """With a folder: the run or qrels that name its pairs."""
    index: Path
    """Where a folder's index is."""


def open_source(files: InputFiles) -> Source:
    """Raises `BatchError` for what is none of the inputs known here."""
    if files.path.is_dir():
        return _folder(files)
    if files.candidates is not None:
        raise BatchError(f"{files.path} is not a BEIR folder, so --candidates has nothing to look up")
    if not files.path.exists():
        raise BatchError(f"cannot read {files.path}: there is no such file")
    match files.path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return JsonlFile(files.path)
        case ".csv" | ".tsv":
            return CsvFile(files.path)
        case ".parquet":
            from rerank_service.tools.batch.parquet_file import ParquetFile  # pyarrow comes with the extra `batch`

            return ParquetFile(files.path)
    raise BatchError(f"{files.path} ends with none of {', '.join(INPUT_SUFFIXES)}, and is not a BEIR folder")


def _folder(files: InputFiles) -> Source:
    missing = [name for name in (CORPUS, QUERIES) if not (files.path / name).is_file()]
    if missing:
        raise BatchError(f"{files.path} is not a BEIR folder: it has no {' and no '.join(missing)}")
    if files.candidates is None:
        raise BatchError(f"{files.path} is a BEIR folder: --candidates names the TREC run or qrels with its pairs")
    if not files.candidates.is_file():
        raise BatchError(f"cannot read {files.candidates}: there is no such file")
    return BeirCandidates(files.path, files.candidates, files.index)
