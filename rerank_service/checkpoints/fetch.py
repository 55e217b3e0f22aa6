"""Fetches a checkpoint's files into a folder. The folder appears only when it is complete and verified.

One process at a time works on a folder. A killed process leaves its files in a hidden `.partial` folder next to the
intended folder, and the next process resumes from these files. This module must not depend on hubs, object stores or
HTTP.
"""

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from rerank_service.checkpoints.origin import CutOff, Origin, RemoteFile
from rerank_service.checkpoints.verification import (
    MANIFEST_FILE,
    MEGABYTE,
    FileRecord,
    Manifest,
    Progress,
    check_against_manifest,
    check_safetensors,
    content_revision,
    is_as_recorded,
    no_progress,
    read_manifest,
    verified_record,
)
from rerank_service.errors import CheckpointError

__all__ = ["Destination", "Fetched", "fetch", "find_whole"]

logger = logging.getLogger(__name__)

_ELSEWHERE = "free some space, or choose another place with RERANK_SERVICE_CACHE or --to"

_TRIES_WITHOUT_PROGRESS = 5
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 16.0


class Destination(NamedTuple):
    """The folder into which a checkpoint is fetched."""

    parent: Path
    name: str | None
    """Name of the folder. Null: the revision, once it is known."""

    is_cache: bool = True
    """Whether files may be hard links to identical files elsewhere. If false, all files are copies, which the user may
    edit."""


class Fetched(NamedTuple):
    """A complete checkpoint on this machine."""

    folder: Path
    manifest: Manifest
    received_bytes: int
    """Number of downloaded bytes. All other bytes were already on this machine."""


def fetch(
    origin: Origin, destination: Destination, progress: Progress = no_progress, *, thorough: bool = True
) -> Fetched:
    """Fetches a checkpoint, verifies every file, and returns its folder. Existing correct files are not fetched again.

    With `thorough`, all bytes of existing files are read; otherwise the files are only checked with
    `check_against_manifest`. Raises `CheckpointError`.
    """
    stem = destination.name or origin.fingerprint
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _locked(destination.parent / f".{stem}.lock", origin.source):
            folder = _existing_folder(origin, destination)
            manifest = read_manifest(folder) if folder is not None else None
            if folder is not None and manifest is not None and not thorough:
                check_against_manifest(folder)
                return Fetched(folder, manifest, 0)
            stage = destination.parent / f".{stem}.partial"
            return _Fetch(origin, destination, folder, manifest, stage, progress).run()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(f"no space left in {destination.parent}; {_ELSEWHERE}") from error
        raise CheckpointError(
            f"cannot write to {destination.parent}: {error.strerror or error}; {_ELSEWHERE}"
        ) from error


def find_whole(
    destination: Destination, source: str, revision: str, progress: Progress = no_progress
) -> Fetched | None:
    """Returns a checkpoint that was fetched earlier; null if it is absent or differs from its manifest.

    Reads all bytes and needs no network.
    """
    folder = destination.parent / (destination.name or revision)
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None or (manifest.source, manifest.revision) != (source, revision):
        return None
    if not is_as_recorded(folder, manifest, progress):
        return None
    check_safetensors(folder)
    return Fetched(folder, manifest, 0)


@contextmanager
def _locked(lock: Path, source: str) -> Iterator[None]:
    # Imported here, because only fetching needs a lock, and huggingface_hub takes half a second to import.
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=0.2))
        except Timeout:
            logger.warning("waiting for another process that fetches %s", source)
            stack.enter_context(WeakFileLock(lock))
        yield


def _existing_folder(origin: Origin, destination: Destination) -> Path | None:
    """Returns the folder of this checkpoint, complete or not. Raises `CheckpointError` if the folder has other
    content."""
    name = destination.name or origin.revision
    if name is None:  # the revision is unknown until all files are fetched, so the listing identifies the checkpoint
        for path in _visible_folders(destination.parent):
            manifest = read_manifest(path)
            if manifest is not None and manifest.fingerprint == origin.fingerprint:
                return path
        return None
    folder = destination.parent / name
    if not folder.is_dir():
        return None
    manifest = read_manifest(folder)
    if manifest is None and any(folder.iterdir()):
        raise CheckpointError(
            f"{folder} contains files that `pull` did not write and will not overwrite; choose another folder"
        )
    if manifest is not None:
        wanted = (origin.source, origin.revision or manifest.revision)
        if (manifest.source, manifest.revision) != wanted:
            raise CheckpointError(
                f"{folder} contains {manifest.source} at {manifest.revision}: choose another folder, or delete this one"
            )
    return folder


def _visible_folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]


class _Fetch:
    """One run of `fetch`, which holds the folder's lock."""

    def __init__(
        self,
        origin: Origin,
        destination: Destination,
        folder: Path | None,
        before: Manifest | None,
        stage: Path,
        progress: Progress,
    ) -> None:
        """`folder` and `before` are the existing folder and its manifest; `stage` is the folder for files in
        progress."""
        self._origin = origin
        self._destination = destination
        self._folder = folder
        self._before = before.files if before is not None else {}
        self._progress = progress
        self._stage = stage
        self._records: dict[str, FileRecord] = {}
        self._received_bytes = 0

    def run(self) -> Fetched:
        folder = self._folder
        if folder is not None:
            for file in self._origin.files:
                if not self._accept(folder / file.name, file) and file.name in self._before:
                    logger.warning("damaged, fetching it again: %s", folder / file.name)
        is_whole = not self._missing()
        if not is_whole:
            self._fetch_missing()
        manifest = Manifest(
            source=self._origin.source,
            revision=self._origin.revision or content_revision(self._records),
            fingerprint=self._origin.fingerprint,
            files=self._records,
        )
        if folder is None or not is_whole:
            folder = self._put_in_place(manifest)
        check_safetensors(folder)
        return Fetched(folder, manifest, self._received_bytes)

    def _missing(self) -> list[RemoteFile]:
        return [file for file in self._origin.files if file.name not in self._records]

    def _accept(self, path: Path, file: RemoteFile) -> bool:
        """Records a file if it is complete and correct."""
        record = verified_record(path, file, self._before.get(file.name), self._progress)
        if record is not None:
            self._records[file.name] = record
        return record is not None

    def _fetch_missing(self) -> None:
        self._stage.mkdir(exist_ok=True)
        for file in self._missing():
            path = self._stage / file.name
            path.parent.mkdir(exist_ok=True)
            if _is_begun(path):
                self._accept(path, file)
            else:
                self._copy_from_this_machine(file, path)
        missing = self._missing()
        self._check_space(missing)
        for file in missing:
            self._receive(file)
        try:
            self._origin.check_unchanged()
        except CheckpointError:
            shutil.rmtree(self._stage)  # the folder mixes files of two versions
            raise

    def _copy_from_this_machine(self, file: RemoteFile, path: Path) -> None:
        """Links or copies the file from another revision, or from another program's cache."""
        for candidate in (self._same_in_another_revision(file), self._origin.at_hand(file)):
            if candidate is not None and candidate.is_file() and candidate.stat().st_size == file.size_bytes:
                path.unlink(missing_ok=True)
                self._link_or_copy(candidate, path)
                if self._accept(path, file):
                    return
                path.unlink()  # the link may share another program's file, which must not be written to

    def _same_in_another_revision(self, file: RemoteFile) -> Path | None:
        if file.digest is None or file.digest.algorithm != "sha256" or not self._destination.is_cache:
            return None
        for folder in _visible_folders(self._destination.parent):
            if folder != self._folder:
                with contextlib.suppress(CheckpointError):  # the manifest of another revision may be damaged
                    manifest = read_manifest(folder)
                    record = manifest.files.get(file.name) if manifest else None
                    if record is not None and record.sha256 == file.digest.hexdigest:
                        return folder / file.name
        return None

    def _link_or_copy(self, path: Path, copy: Path) -> None:
        if self._destination.is_cache:
            with contextlib.suppress(OSError):  # another file system, or one without hard links
                os.link(path.resolve(), copy)
                return
        shutil.copyfile(path, copy)

    def _check_space(self, missing: list[RemoteFile]) -> None:
        there = sum(path.stat().st_size for file in missing if (path := self._stage / file.name).is_file())
        needed_bytes = sum(file.size_bytes for file in missing) - there
        free_bytes = shutil.disk_usage(self._stage).free
        if needed_bytes > free_bytes:
            needed, free = f"{needed_bytes / 1e9:.2f} GB", f"{free_bytes / 1e9:.2f} GB"
            raise CheckpointError(
                f"too little disk space: {self._origin.source} needs {needed} more, and {self._stage.parent} has "
                f"{free} free; {_ELSEWHERE}"
            )

    def _receive(self, file: RemoteFile) -> None:
        """Downloads and verifies a file."""
        path = self._stage / file.name
        for _ in range(2 if _is_begun(path) else 1):  # bytes left by an interrupted run may be wrong: start over once
            self._complete(file, path)
            if self._accept(path, file):
                return
            path.unlink()
        raise CheckpointError(
            f"{file.name} of {self._origin.source} does not match its digest and was not kept. Try again; if that does "
            "not help, a mirror or proxy serves damaged files"
        )

    def _complete(self, file: RemoteFile, path: Path) -> None:
        """Downloads a file to its full size, resuming after interruptions.

        Raises `CheckpointError` after several tries in a row without a new byte, and keeps the received bytes.
        """
        tries_left = _TRIES_WITHOUT_PROGRESS
        path.touch()
        while (before_bytes := path.stat().st_size) < file.size_bytes:
            reason = self._receive_once(file, path, before_bytes)
            there_bytes = path.stat().st_size
            if there_bytes >= file.size_bytes:
                break
            tries_left = _TRIES_WITHOUT_PROGRESS if there_bytes > before_bytes else tries_left - 1
            if tries_left == 0:
                raise CheckpointError(
                    f"cannot fetch {file.name} of {self._origin.source}: {reason}. The bytes received so far are kept: "
                    "the same command resumes from there"
                )
            logger.warning("%s: %s; resuming from byte %d", file.name, reason, there_bytes)
            time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** max(0, _TRIES_WITHOUT_PROGRESS - tries_left - 1)))

    def _receive_once(self, file: RemoteFile, path: Path, offset: int) -> str:
        """Receives bytes until the file is complete or the connection ends. Returns the reason for the end."""
        done_bytes = sum(record.size_bytes for record in self._records.values())
        total_bytes = sum(other.size_bytes for other in self._origin.files)
        reason = "the connection ended early"
        with path.open("r+b") as target:  # no append: if the lock fails, both writers write the same bytes
            try:
                for position, piece in self._origin.read(file, offset):
                    if position != target.tell():
                        target.seek(position)
                        target.truncate()
                    target.write(piece)
                    self._received_bytes += len(piece)
                    self._progress("fetching", (done_bytes + target.tell()) // MEGABYTE, total_bytes // MEGABYTE)
                    if target.tell() > file.size_bytes:
                        break  # not the expected file: its digest will not match
            except CutOff as error:
                reason = str(error)
            target.flush()
            os.fsync(target.fileno())
        return reason

    def _put_in_place(self, manifest: Manifest) -> Path:
        folder = self._folder or self._destination.parent / (self._destination.name or manifest.revision)
        self._stage.mkdir(exist_ok=True)
        manifest.write(self._stage)
        if not folder.exists():
            self._stage.rename(folder)
            return folder
        received = [path for path in self._stage.rglob("*") if path.is_file()]
        for path in sorted(received, key=lambda path: path.name == MANIFEST_FILE):  # the manifest last
            target = folder / path.relative_to(self._stage)
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
        shutil.rmtree(self._stage)
        return folder


def _is_begun(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
