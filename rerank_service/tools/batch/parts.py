"""Folder of an unfinished job: a manifest, one file per scored chunk, and a lock.

Each file is written atomically: under a temporary name, flushed to disk, then renamed.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from rerank_service.errors import BatchError
from rerank_service.tools.batch.chunks import Chunk
from rerank_service.tools.files import file_problem

__all__ = ["Parts", "whole_file"]

_MANIFEST = "manifest.json"
_LOCK = "lock"
_PART = re.compile(r"(\d{9})\.jsonl")
_OURS = re.compile(rf"{_MANIFEST}|{_LOCK}|index\.sqlite(-journal)?|\d{{9}}\.jsonl|.*\.unfinished")


class Parts:
    """The folder of a job. A `with` block locks the folder, and a second job with the same output raises `BatchError`.

    A new job that fails before its first chunk is scored removes the folder.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(output.name + ".parts")
        self._lock: IO[str] | None = None
        self._new_folders: list[Path] = []
        """Folders that this job created, innermost first."""
        self._was_begun = False

    @property
    def index(self) -> Path:
        """Index of a BEIR folder's queries and passages."""
        return self.folder / "index.sqlite"

    def __enter__(self) -> Self:
        try:
            self._new_folders = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / _LOCK).open("w")
        except OSError as error:
            raise BatchError(file_problem(error, self.folder, is_output=True)) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise BatchError(f"another process is using {self.folder}") from None
        self._was_begun = self._is_begun
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        is_interrupted = isinstance(error, KeyboardInterrupt)  # keep the plan, which took time to make
        if error and not self._was_begun and not self.done() and not (is_interrupted and self._is_begun):
            self.remove()
            for folder in self._new_folders[1:]:
                if not any(folder.iterdir()):
                    folder.rmdir()
        self._lock.close()

    @property
    def _is_begun(self) -> bool:
        return (self.folder / _MANIFEST).exists()

    def manifest(self) -> dict[str, Any] | None:
        """Settings and plan of the job; null if there is no job yet."""
        try:
            manifest: dict[str, Any] = json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise BatchError(
                f"{self.folder / _MANIFEST} is damaged ({error}); delete the folder to start again"
            ) from None
        return manifest

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        with whole_file(self.folder / _MANIFEST) as file:
            file.write(json.dumps(manifest).encode())

    def done(self) -> set[int]:
        """Indices of the chunks that are already scored."""
        return {int(found[1]) for path in self.folder.iterdir() if (found := _PART.fullmatch(path.name))}

    def write(self, index: int, lines: bytes) -> None:
        """Saves a scored chunk. The chunk survives a crash after this function has returned."""
        with whole_file(self._part(index)) as file:
            file.write(lines)

    def lines(self, chunks: Sequence[Chunk]) -> Iterator[bytes]:
        """Lines of all parts, in order. Raises `BatchError` if a part has more or fewer lines than its chunk has
        pairs."""
        for chunk in chunks:
            path = self._part(chunk.index)
            num_lines = 0
            with path.open("rb") as file:
                for line in file:
                    num_lines += 1
                    yield line
            if num_lines != chunk.num_pairs:
                raise BatchError(
                    f"{path} has {num_lines} lines instead of {chunk.num_pairs}: delete it and run the command again"
                )

    def clear(self) -> None:
        """Removes the files of the job. The manifest is removed first, because other files are ignored without it."""
        (self.folder / _MANIFEST).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name != _LOCK:
                path.unlink()

    def remove(self) -> None:
        """Removes the files of the job, and the folder unless it contains other files."""
        self.clear()
        (self.folder / _LOCK).unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _part(self, index: int) -> Path:
        return self.folder / f"{index:09d}.jsonl"


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file. If the block succeeds, the file is flushed to disk and replaces `path` atomically."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the rename durable
        finally:
            os.close(folder)
    except OSError as error:
        raise BatchError(file_problem(error, path, is_output=True)) from None
    finally:
        unfinished.unlink(missing_ok=True)
