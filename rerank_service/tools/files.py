"""Says in plain words why a file or folder cannot be used."""

import os
from pathlib import Path

__all__ = ["file_problem"]


def file_problem(
    error: OSError | UnicodeDecodeError, path: str | Path | None = None, *, is_output: bool = False
) -> str:
    """One sentence for people, such as `pairs.jsonl does not exist`.

    Without a `path`, the error itself names the file; a `UnicodeDecodeError` needs the `path`. With `is_output`, the
    file could not be written.
    """
    if isinstance(error, UnicodeDecodeError):
        line = 1 + error.object.count(b"\n", 0, error.start)
        return f"{path}, line {line}: not UTF-8 ({error.reason})"
    reason = error.strerror or (os.strerror(error.errno) if error.errno else str(error) or type(error).__name__)
    reason = reason[:1].lower() + reason[1:]
    place = path if path is not None else error.filename
    if place is None:
        return f"the system refuses: {reason}"
    if is_output:
        return f"{place} cannot be written: {reason}"
    if isinstance(error, FileNotFoundError):
        return f"{place} does not exist"
    if isinstance(error, IsADirectoryError):
        return f"{place} is a folder, not a file"
    if isinstance(error, NotADirectoryError):
        return f"{place} is not a folder, or lies in a path that is not a folder"
    return f"{place} cannot be read: {reason}"
