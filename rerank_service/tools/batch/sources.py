"""Opens an input according to its suffix. Other processes receive `InputFiles` and open the input themselves."""

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
    """Paths of an input."""

    path: Path
    """A file with rows, or a BEIR folder."""
    candidates: Path | None
    """For a BEIR folder: the TREC run or qrels file that names the pairs; null for other inputs."""
    index: Path
    """For a BEIR folder: the index of its queries and passages."""


def open_source(files: InputFiles) -> Source:
    """Opens an input. Raises `BatchError` if it is missing or unsupported."""
    if files.path.is_dir():
        return _folder(files)
    if files.candidates is not None:
        raise BatchError(f"{files.path} is not a BEIR folder, so --candidates does not apply")
    if not files.path.exists():
        raise BatchError(f"{files.path} does not exist")
    match files.path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return JsonlFile(files.path)
        case ".csv" | ".tsv":
            return CsvFile(files.path)
        case ".parquet":
            from rerank_service.tools.batch.parquet_file import ParquetFile  # imports pyarrow

            return ParquetFile(files.path)
    raise BatchError(f"{files.path} must be a BEIR folder or end in one of {', '.join(INPUT_SUFFIXES)}")


def _folder(files: InputFiles) -> Source:
    missing = [name for name in (CORPUS, QUERIES) if not (files.path / name).is_file()]
    if missing:
        raise BatchError(f"{files.path} is not a BEIR folder: it has no {' and no '.join(missing)}")
    if files.candidates is None:
        raise BatchError(
            f"{files.path} is a BEIR folder: --candidates must name a TREC run or qrels with the pairs to score"
        )
    if not files.candidates.is_file():
        raise BatchError(f"{files.candidates} does not exist")
    return BeirCandidates(files.path, files.candidates, files.index)
