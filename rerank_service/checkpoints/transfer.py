"""One file's bytes from where they are, going on after cuts. It must not know whether they are the right ones."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from rerank_service.checkpoints.files import RemoteFile
from rerank_service.checkpoints.origin import CutOff, Origin
from rerank_service.errors import CheckpointError

__all__ = ["receive"]

logger = logging.getLogger(__name__)

_TRIES_WITHOUT_PROGRESS = 5
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 16.0


def receive(origin: Origin, file: RemoteFile, path: Path, on_bytes: Callable[[int, int], None]) -> None:
    """Completes a file to its size; `on_bytes` is told how many more came, and how many are there.

    Gives up after several tries that brought none: raises `CheckpointError`, and keeps what is there.
    """
    tries_left = _TRIES_WITHOUT_PROGRESS
    path.touch()
    while (before_bytes := path.stat().st_size) < file.size_bytes:
        reason = _receive_once(origin, file, path, before_bytes, on_bytes)
        there_bytes = path.stat().st_size
        if there_bytes >= file.size_bytes:
            break
        tries_left = _TRIES_WITHOUT_PROGRESS if there_bytes > before_bytes else tries_left - 1
        if tries_left == 0:
            raise CheckpointError(
                f"cannot fetch {file.name} of {origin.source}: {reason}. What has come is kept: the same command "
                "goes on from there"
            )
        logger.warning("%s: %s; going on from byte %d", file.name, reason, there_bytes)
        time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** max(0, _TRIES_WITHOUT_PROGRESS - tries_left - 1)))


def _receive_once(
    origin: Origin, file: RemoteFile, path: Path, offset: int, on_bytes: Callable[[int, int], None]
) -> str:
    """Why it ended, should the file not be complete."""
    reason = "the connection ended early"
    with path.open("r+b") as target:  # not appended: where locks are broken, two writers write the same bytes
        try:
            for position, piece in origin.read(file, offset):
                if position != target.tell():
                    target.seek(position)
                    target.truncate()
                target.write(piece)
                on_bytes(len(piece), target.tell())
                if target.tell() > file.size_bytes:
                    break  # another file: its digest will say so
        except CutOff as error:
            reason = str(error)
        target.flush()
        os.fsync(target.fileno())
    return reason
