"""A checkpoint's files into a folder: verified one by one, resumable, and there as a whole or not at all.

One process at a time works on a folder; a killed one leaves a hidden sibling that the next goes on with. It must not
know hubs, object stores or HTTP.
"""

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from rerank_service.errors import CheckpointError
from rerank_service.fetching.digests import (
    SAMPLED_ABOVE_BYTES,
    FileDigests,
    Progress,
    quick_digest,
    read_digests,
    silent,
)
from rerank_service.fetching.files import RemoteFile
from rerank_service.fetching.manifest import (
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    check_against_manifest,
    content_revision,
    read_manifest,
)
from rerank_service.fetching.origin import CutOff, Origin
from rerank_service.fetching.safetensors_files import check_safetensors

__all__ = ["Destination", "Fetched", "fetch", "find_whole"]

logger = logging.getLogger(__name__)

_TRIES_WITHOUT_PROGRESS = 5
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 16.0
_MB = 1_000_000
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
    stem = destination.name or origin.fingerprint
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(destination.parent / f".{stem}.lock", origin.source):
            folder = _folder_of(origin, destination)
            before = read_manifest(folder) if folder is not None else None
            if folder is not None and before is not None and not thorough:
                check_against_manifest(folder)
                return Fetched(folder, before, 0)
            return _Fetching(origin, destination, stem, folder, before, progress).run()
    except OSError as error:
        raise CheckpointError(_no_place(destination.parent, error)) from error


def find_whole(destination: Destination, source: str, revision: str, progress: Progress = silent) -> Fetched | None:
    """What was fetched before, all its bytes read and right by its manifest; null otherwise. Asks nobody."""
    folder = destination.parent / (destination.name or revision)
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None or (manifest.source, manifest.revision) != (source, revision):
        return None
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != record.size_bytes:
            return None
        if read_digests(path, _checking(record.size_bytes, progress)).sha256 != record.sha256:
            return None
    check_safetensors(folder)
    return Fetched(folder, manifest, 0)


def _checking(size_bytes: int, progress: Progress) -> Callable[[int], None]:
    """Tells of large files how much is read; small ones are not worth a word."""
    read_bytes = 0

    def on_bytes(more: int) -> None:
        nonlocal read_bytes
        read_bytes += more
        if size_bytes > SAMPLED_ABOVE_BYTES:
            progress("checking", read_bytes // _MB, size_bytes // _MB)

    return on_bytes


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

    def __init__(
        self,
        origin: Origin,
        destination: Destination,
        stem: str,
        folder: Path | None,
        before: Manifest | None,
        progress: Progress,
    ) -> None:
        self._origin = origin
        self._destination = destination
        self._folder = folder
        self._before = before.files if before else {}
        self._progress = progress
        self._stage = destination.parent / f".{stem}.partial"
        self._received_bytes = 0
        self._done_bytes = 0
        self._total_bytes = sum(file.size_bytes for file in origin.files)

    def run(self) -> Fetched:
        records = self._verified_records()
        missing = [file for file in self._origin.files if file.name not in records]
        if missing:
            self._stage.mkdir(exist_ok=True)
            self._check_space(missing)
            for file in missing:
                records[file.name] = self._fetch_file(file)
            self._origin.check_unchanged()
        manifest = Manifest(
            source=self._origin.source,
            revision=self._origin.revision or content_revision(records),
            fingerprint=self._origin.fingerprint,
            files=records,
        )
        folder = self._put_in_place(manifest) if missing or self._folder is None else self._folder
        check_safetensors(folder)
        return Fetched(folder, manifest, self._received_bytes)

    def _verified_records(self) -> dict[str, FileRecord]:
        """Of the files that are in their place and right, to the last byte."""
        if self._folder is None:
            return {}
        found = {file.name: self._verified(self._folder / file.name, file) for file in self._origin.files}
        damaged = [name for name, record in found.items() if record is None and name in self._before]
        for name in damaged:
            logger.warning("damaged, fetched again: %s", self._folder / name)
        return {name: record for name, record in found.items() if record is not None}

    def _verified(self, path: Path, file: RemoteFile) -> FileRecord | None:
        """Null unless the file is there, of the right size, and has the digest that is known of it."""
        if not path.is_file() or path.stat().st_size != file.size_bytes:
            return None
        digests = read_digests(path, _checking(file.size_bytes, self._progress))
        checked_against = self._agreeing_digest(digests, file)
        if checked_against is None and (file.digest is not None or self._contradicts_record(digests, file)):
            return None
        return FileRecord(
            size_bytes=digests.size_bytes,
            sha256=digests.sha256,
            quick_digest=quick_digest(path),
            checked_against=checked_against,
        )

    @staticmethod
    def _agreeing_digest(digests: FileDigests, file: RemoteFile) -> str | None:
        if file.digest is None:
            return None
        actual = digests.sha256 if file.digest.algorithm == "sha256" else digests.git_sha1
        return file.digest.algorithm if actual == file.digest.hexdigest else None

    def _contradicts_record(self, digests: FileDigests, file: RemoteFile) -> bool:
        recorded = self._before.get(file.name)
        return recorded is not None and recorded.sha256 != digests.sha256

    def _fetch_file(self, file: RemoteFile) -> FileRecord:
        path = self._stage / file.name
        is_left_over = path.is_file() and path.stat().st_size > 0  # by a run that was stopped
        record = self._verified(path, file) if is_left_over else self._from_this_machine(file, path)
        for _ in range(2 if is_left_over else 1):  # what was left over may be at fault
            if record is None:
                self._receive(file, path)
                record = self._verified(path, file)
            if record is None:
                path.unlink(missing_ok=True)
        if record is None:
            raise CheckpointError(
                f"{file.name} of {self._origin.source} came with other bytes than its digest says; it was not kept. "
                "Try again; if that does not help, what is in between (a mirror, a proxy) serves damaged files"
            )
        self._done_bytes += file.size_bytes
        return record

    def _from_this_machine(self, file: RemoteFile, path: Path) -> FileRecord | None:
        """From another revision that was fetched, or from a hub's own cache: verified like all else."""
        for candidate in (self._same_in_another_revision(file), self._origin.at_hand(file)):
            if candidate is None or not candidate.is_file() or candidate.stat().st_size != file.size_bytes:
                continue
            path.unlink(missing_ok=True)
            self._link_or_copy(candidate, path)
            record = self._verified(path, file)
            if record is not None:
                return record
            path.unlink()  # before anything writes into what may be another's file
        return None

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

    def _receive(self, file: RemoteFile, path: Path) -> None:
        """All bytes that are missing; gives up after several tries that brought none."""
        tries_left = _TRIES_WITHOUT_PROGRESS
        path.touch()
        while (before_bytes := path.stat().st_size) < file.size_bytes:
            try:
                self._receive_once(file, path, before_bytes)
                reason = "the connection ended early"
            except CutOff as error:
                reason = str(error)
            if path.stat().st_size >= file.size_bytes:
                break
            tries_left = _TRIES_WITHOUT_PROGRESS if path.stat().st_size > before_bytes else tries_left - 1
            if tries_left == 0:
                raise CheckpointError(
                    f"cannot fetch {file.name} of {self._origin.source}: {reason}. What has come is kept: the same "
                    "command goes on from there"
                )
            failures = _TRIES_WITHOUT_PROGRESS - tries_left
            logger.warning("%s: %s; going on from byte %d", file.name, reason, path.stat().st_size)
            time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** max(0, failures - 1)))
        if path.stat().st_size > file.size_bytes:
            path.unlink()

    def _receive_once(self, file: RemoteFile, path: Path, offset: int) -> None:
        with path.open("r+b") as target:  # not appended: where locks are broken, two writers write the same bytes
            for position, piece in self._origin.read(file, offset):
                if position != target.tell():
                    target.seek(position)
                    target.truncate()
                target.write(piece)
                self._received_bytes += len(piece)
                self._progress("fetching", (self._done_bytes + target.tell()) // _MB, self._total_bytes // _MB)
                if target.tell() > file.size_bytes:
                    break
            target.flush()
            os.fsync(target.fileno())

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
