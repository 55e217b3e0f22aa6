"""A checkpoint's files into a folder: verified one by one, resumable, and there as a whole or not at all.

One process at a time works on a folder; a killed one leaves a hidden sibling that the next goes on with. It must not
know hubs, object stores or HTTP.
"""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from rerank_service.checkpoints.digests import Progress, silent
from rerank_service.checkpoints.files import RemoteFile
from rerank_service.checkpoints.manifest import (
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    check_against_manifest,
    content_revision,
    read_manifest,
)
from rerank_service.checkpoints.origin import Origin
from rerank_service.checkpoints.safetensors_files import check_safetensors
from rerank_service.checkpoints.transfer import receive
from rerank_service.checkpoints.verification import MEGABYTE, is_as_recorded, verified_record
from rerank_service.errors import CheckpointError

__all__ = ["Destination", "Fetched", "fetch", "find_whole"]

logger = logging.getLogger(__name__)

_ELSEWHERE = "make room, or name another place with RERANK_SERVICE_CACHE or --to"


class Destination(NamedTuple):
    """Where a checkpoint goes."""

    parent: Path
    name: str | None
    """Of its folder. Null: its revision, once that is known."""

    is_cache: bool = True
    """Files may then be hard links to the same bytes elsewhere; else they are copies, for their owner to change."""


class Fetched(NamedTuple):
    """A checkpoint that is there."""

    folder: Path
    manifest: Manifest
    received_bytes: int
    """That came from the source; the rest was on this machine already."""


def fetch(origin: Origin, destination: Destination, progress: Progress = silent, *, thorough: bool = True) -> Fetched:
    """The checkpoint's folder, every file verified; what is there and right is not fetched again.

    `thorough` reads all bytes of what is there already; else `manifest.check_against_manifest` is enough. Raises
    `CheckpointError`.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(destination.parent / f".{_stem(origin, destination)}.lock", origin.source):
            folder = _folder_of(origin, destination)
            before = read_manifest(folder) if folder is not None else None
            if folder is not None and before is not None and not thorough:
                check_against_manifest(folder)
                return Fetched(folder, before, 0)
            return _Fetching(origin, destination, folder, progress).run()
    except OSError as error:
        raise CheckpointError(_no_place(destination.parent, error)) from error


def find_whole(destination: Destination, source: str, revision: str, progress: Progress = silent) -> Fetched | None:
    """What was fetched before, all its bytes read and right by its manifest; null otherwise. Asks nobody."""
    folder = destination.parent / (destination.name or revision)
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None or (manifest.source, manifest.revision) != (source, revision):
        return None
    if not is_as_recorded(folder, manifest, progress):
        return None
    check_safetensors(folder)
    return Fetched(folder, manifest, 0)


def _folder_of(origin: Origin, destination: Destination) -> Path | None:
    """Where the checkpoint is already, or a part of it. Raises `CheckpointError` if something else is in its place."""
    name = destination.name or origin.revision
    if name is None:
        beside = (path for path in destination.parent.iterdir() if path.is_dir() and not path.name.startswith("."))
        manifests = ((path, read_manifest(path)) for path in beside)
        return next((path for path, found in manifests if found and found.fingerprint == origin.fingerprint), None)
    folder = destination.parent / name
    if not folder.is_dir():
        return None
    manifest = read_manifest(folder)
    if manifest is None and any(folder.iterdir()):
        raise CheckpointError(f"{folder} holds something that was not pulled; it is left alone: name another folder")
    if manifest is not None and (manifest.source, manifest.revision) != (
        origin.source,
        origin.revision or manifest.revision,
    ):
        raise CheckpointError(
            f"{folder} holds {manifest.source} at {manifest.revision}; name another folder, or delete that one"
        )
    return folder


class _Fetching:
    """One run of `fetch`, with the folder to itself."""

    def __init__(self, origin: Origin, destination: Destination, folder: Path | None, progress: Progress) -> None:
        manifest = read_manifest(folder) if folder is not None else None
        self._origin = origin
        self._destination = destination
        self._folder = folder
        self._before = manifest.files if manifest is not None else {}
        self._progress = progress
        self._stage = destination.parent / f".{_stem(origin, destination)}.partial"
        self._records: dict[str, FileRecord] = {}
        self._received_bytes = 0

    def run(self) -> Fetched:
        is_whole = self._take_what_is_in_place()
        if not is_whole:
            self._stage.mkdir(exist_ok=True)
            self._take_what_is_on_this_machine()
            missing = self._missing()
            self._check_space(missing)
            for file in missing:
                self._receive(file)
            self._check_origin()
        manifest = Manifest(
            source=self._origin.source,
            revision=self._origin.revision or content_revision(self._records),
            fingerprint=self._origin.fingerprint,
            files=self._records,
        )
        folder = self._folder if self._folder is not None and is_whole else self._put_in_place(manifest)
        check_safetensors(folder)
        return Fetched(folder, manifest, self._received_bytes)

    def _missing(self) -> list[RemoteFile]:
        return [file for file in self._origin.files if file.name not in self._records]

    def _take_what_is_in_place(self) -> bool:
        """Whether that is all."""
        if self._folder is not None:
            for file in self._origin.files:
                if not self._take(self._folder / file.name, file) and file.name in self._before:
                    logger.warning("damaged, fetched again: %s", self._folder / file.name)
        return not self._missing()

    def _take_what_is_on_this_machine(self) -> None:
        """What a stopped run has left; else what another revision or a hub's own cache has."""
        for file in self._missing():
            path = self._stage / file.name
            if _is_begun(path):
                self._take(path, file)
            else:
                self._take_candidate(file, path)

    def _take(self, path: Path, file: RemoteFile) -> bool:
        record = verified_record(path, file, self._before.get(file.name), self._progress)
        if record is not None:
            self._records[file.name] = record
        return record is not None

    def _receive(self, file: RemoteFile) -> None:
        path = self._stage / file.name
        done_bytes = sum(record.size_bytes for record in self._records.values())
        total_bytes = sum(other.size_bytes for other in self._origin.files)

        def on_bytes(more: int, there: int) -> None:
            self._received_bytes += more
            self._progress("fetching", (done_bytes + there) // MEGABYTE, total_bytes // MEGABYTE)

        for _ in range(2 if _is_begun(path) else 1):  # what a stopped run has left may be at fault
            receive(self._origin, file, path, on_bytes)
            if self._take(path, file):
                return
            path.unlink()
        raise CheckpointError(
            f"{file.name} of {self._origin.source} came with other bytes than its digest says; it was not kept. "
            "Try again; if that does not help, what is in between (a mirror, a proxy) serves damaged files"
        )

    def _check_origin(self) -> None:
        try:
            self._origin.check_unchanged()
        except CheckpointError:
            shutil.rmtree(self._stage)  # of two versions
            raise

    def _take_candidate(self, file: RemoteFile, path: Path) -> None:
        for candidate in (self._same_in_another_revision(file), self._origin.at_hand(file)):
            if candidate is not None and candidate.is_file() and candidate.stat().st_size == file.size_bytes:
                path.unlink(missing_ok=True)
                self._link_or_copy(candidate, path)
                if self._take(path, file):
                    return
                path.unlink()  # before anything writes into what may be another's file

    def _link_or_copy(self, path: Path, copy: Path) -> None:
        if self._destination.is_cache:
            with contextlib.suppress(OSError):  # another file system, or one without links
                os.link(path.resolve(), copy)
                return
        shutil.copyfile(path, copy)

    def _same_in_another_revision(self, file: RemoteFile) -> Path | None:
        if file.digest is None or file.digest.algorithm != "sha256" or not self._destination.is_cache:
            return None
        for folder in self._destination.parent.iterdir():
            if folder.is_dir() and not folder.name.startswith(".") and folder != self._folder:
                with contextlib.suppress(CheckpointError):  # another's trouble
                    manifest = read_manifest(folder)
                    record = manifest.files.get(file.name) if manifest else None
                    if record is not None and record.sha256 == file.digest.hexdigest:
                        return folder / file.name
        return None

    def _check_space(self, missing: list[RemoteFile]) -> None:
        there = sum(path.stat().st_size for file in missing if (path := self._stage / file.name).is_file())
        needed_bytes = sum(file.size_bytes for file in missing) - there
        free_bytes = shutil.disk_usage(self._stage).free
        if needed_bytes > free_bytes:
            needed, free = f"{needed_bytes / 1e9:.2f} GB", f"{free_bytes / 1e9:.2f} GB"
            raise CheckpointError(
                f"no space left: {self._origin.source} needs {needed} more, and {self._stage.parent} has {free}; "
                f"{_ELSEWHERE}"
            )

    def _put_in_place(self, manifest: Manifest) -> Path:
        folder = self._folder or self._destination.parent / (self._destination.name or manifest.revision)
        self._stage.mkdir(exist_ok=True)
        manifest.write(self._stage)
        if not folder.exists():
            self._stage.rename(folder)
            return folder
        for path in sorted(self._stage.iterdir(), key=lambda path: path.name == MANIFEST_FILE):  # the manifest last
            path.replace(folder / path.name)
        self._stage.rmdir()
        return folder


def _stem(origin: Origin, destination: Destination) -> str:
    """Of the hidden names beside the folder."""
    return destination.name or origin.fingerprint


def _is_begun(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


@contextmanager
def _one_at_a_time(lock: Path, source: str) -> Iterator[None]:
    from filelock import Timeout  # with the hub's library, half a second that only fetching pays
    from huggingface_hub.utils import WeakFileLock

    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=0.2))
        except Timeout:
            logger.warning("waiting for another process that fetches %s", source)
            stack.enter_context(WeakFileLock(lock))
        yield


def _no_place(parent: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left in {parent}; {_ELSEWHERE}"
    return f"cannot write to {parent}: {error}; {_ELSEWHERE}"
