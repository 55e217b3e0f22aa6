"""What a place to fetch from must be able to do. It must not know any such place, nor where files go."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from rerank_service.checkpoints.files import RemoteFile

__all__ = ["CutOff", "Origin"]


class CutOff(Exception):
    """Reading ended before the file did; asking again for the rest is sensible."""


class Origin(Protocol):
    """One checkpoint, at one moment, in the place that it comes from."""

    @property
    def source(self) -> str:
        """As a configuration names it."""

    @property
    def revision(self) -> str | None:
        """Null where it is known only when all files are there: `manifest.content_revision`."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the listing does; fit for a file's name."""

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """To be fetched."""

    def read(self, file: RemoteFile, offset: int) -> Iterator[tuple[int, bytes]]:
        """Pieces of a file, each with its position: from `offset` on, or from 0 where the place knows no offsets.

        Raises `CutOff`, and `CheckpointError` for what no retry mends.
        """

    def at_hand(self, file: RemoteFile) -> Path | None:
        """A file of this machine that should have the same bytes."""

    def check_unchanged(self) -> None:
        """Raises `CheckpointError` if the source is no longer what was listed."""
