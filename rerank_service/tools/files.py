"""Says in plain words why a file or folder cannot be used."""

import os
from pathlib import Path

__all__ = ["file_problem"]


def file_problem(
    error: OSError | UnicodeDecodeError, path: str | Path | None = None, *, is_output: bool = False
) -> str:
    """One sentence for people, such as `pairs.jsonl does not exist`.

    If `path` is null, the error itself must name the file; a `UnicodeDecodeError` names none, so it needs a `path`.
    `is_output` says that the file was being written, not read.
    """
    if isinstance(error, UnicodeDecodeError):
        line = 1 + error.object.count(b"\n", 0, error.start)
        return f"{path}, line {line}: not UTF-8 ({error.reason})"
    reason = error.strerror or (os.strerror(error.errno) if error.errno else str(error) or type(error).__name__)
    reason = reason[:1].lower() + reason[1:]
    place = path if path is not None else error.filename
    if place is None:
        return f"the operating system reports: {reason}"
    if is_output:
        return f"{place} cannot be written: {reason}"
    if isinstance(error, FileNotFoundError):
        return f"{place} does not exist"
    if isinstance(error, IsADirectoryError):
        return f"{place} is a folder, not a file"
    if isinstance(error, NotADirectoryError):
        return f"{place} is not a folder, or lies in a path that is not a folder"
    return f"{place} cannot be read: {reason}"
