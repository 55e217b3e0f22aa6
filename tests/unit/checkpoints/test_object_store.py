"""Pulls from object stores, for which fsspec's memory and local file systems stand in."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rerank_service.checkpoints import object_store
from rerank_service.checkpoints.pull import pull
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.checkpoints.verification import MANIFEST_FILE
from rerank_service.config import CheckpointConfig
from rerank_service.errors import CheckpointError
from tests.fetching import contents, isolated_environment, record_pauses

URL = "bucket://models/tiny"
WEIGHTS = "model.safetensors"


class Bucket(MemoryFileSystem):  # type: ignore[misc]
    """An in-memory store whose reads fail on demand."""

    protocol = "bucket"
    store: dict[str, Any] = {}  # noqa: RUF012 - a class attribute, as in its parent
    pseudo_dirs = [""]  # noqa: RUF012
    failures = 0
    ranges: list[tuple[str, int, int]] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix("bucket://"))
        return stripped

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        Bucket.ranges.append((path.rpartition("/")[2], start or 0, end or 0))
        if start and Bucket.failures:
            Bucket.failures -= 1
            raise TimeoutError("the store is slow")
        content: bytes = super().cat_file(path, start=start, end=end, **options)
        return content


@pytest.fixture
def files(checkpoints: dict[str, Path]) -> dict[str, bytes]:
    return contents(checkpoints["bert"])


@pytest.fixture
def bucket(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    isolated_environment(monkeypatch, tmp_path, "http://127.0.0.1:9")
    monkeypatch.setattr(object_store, "RANGE_BYTES", 100_000)
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "ranges", [])
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    store = Bucket()
    upload(store, files)
    yield store
    Bucket.clear_instance_cache()


def upload(store: MemoryFileSystem, files: dict[str, bytes], folder: str = "models/tiny") -> None:
    for name, content in files.items():
        store.pipe_file(f"{folder}/{name}", content)


def test_the_revision_of_a_path_can_be_computed_with_sha256sum(
    bucket: MemoryFileSystem, files: dict[str, bytes], tmp_path: Path
) -> None:
    fetched = pull(URL)

    lines = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    assert fetched.manifest.revision == hashlib.sha256(lines.encode()).hexdigest()
    assert fetched.folder.is_relative_to(tmp_path / "cache" / "objects")
    assert {name: content for name, content in contents(fetched.folder).items() if name != MANIFEST_FILE} == files
    assert {record.checked_against for record in fetched.manifest.files.values()} == {None}


def test_the_projections_of_a_colbert_model_come_in_their_folders(
    bucket: MemoryFileSystem, files: dict[str, bytes]
) -> None:
    modules = {"1_Dense/config.json": b"{}", "1_Dense/model.safetensors": files[WEIGHTS]}
    upload(bucket, modules | {"1_Pooling/config.json": b"{}"})

    folder = pull(URL).folder

    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found.keys() - {MANIFEST_FILE} == files.keys() | modules.keys()
    assert contents(folder / "1_Dense") == contents_of(modules, "1_Dense")


def contents_of(files: dict[str, bytes], folder: str) -> dict[str, bytes]:
    return {name.removeprefix(f"{folder}/"): content for name, content in files.items()}


def test_an_unchanged_folder_is_not_fetched_again_and_a_changed_one_has_another_revision(
    bucket: MemoryFileSystem, files: dict[str, bytes]
) -> None:
    before = pull(URL + "/")
    assert pull(URL).received_bytes == 0
    upload(bucket, {"config.json": files["config.json"] + b"\n"})
    after = pull(URL)

    assert before.manifest.revision != after.manifest.revision
    assert before.folder != after.folder
    assert (before.folder / "config.json").read_bytes() == files["config.json"]


def test_an_uploaded_copy_of_a_pulled_folder_is_verified(
    bucket: MemoryFileSystem, files: dict[str, bytes], tmp_path: Path
) -> None:
    first = pull(URL, to=tmp_path / "copy")
    upload(bucket, contents(tmp_path / "copy"), "models/uploaded")

    fetched = pull("bucket://models/uploaded")
    assert fetched.manifest.revision == first.manifest.revision
    assert {record.checked_against for record in fetched.manifest.files.values()} == {"sha256"}

    damaged = bytearray(files[WEIGHTS])
    damaged[-1] ^= 1
    upload(bucket, {WEIGHTS: bytes(damaged)}, "models/uploaded")
    with pytest.raises(CheckpointError, match=r"model\.safetensors of .* does not match its digest"):
        pull("bucket://models/uploaded", to=tmp_path / "again")


def test_a_failed_range_is_requested_again(
    bucket: MemoryFileSystem, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    record_pauses(monkeypatch)
    monkeypatch.setattr(Bucket, "failures", 2)
    fetched = pull(URL)

    assert (fetched.folder / WEIGHTS).read_bytes() == files[WEIGHTS]
    starts = [start for name, start, _ in Bucket.ranges if name == WEIGHTS]
    assert starts[:4] == [0, 100_000, 100_000, 100_000]


def test_a_change_during_the_fetch_is_refused(
    bucket: MemoryFileSystem, files: dict[str, bytes], tmp_path: Path
) -> None:
    def on_progress(stage: str, done: int, total: int) -> None:
        upload(bucket, {"vocab.txt": b"late"})

    with pytest.raises(CheckpointError, match="changed during the fetch"):
        pull(URL, progress=on_progress)
    assert not [path for path in (tmp_path / "cache" / "objects").glob("*/*") if path.is_dir()]


def test_a_replica_loads_only_the_pinned_revision(
    bucket: MemoryFileSystem, files: dict[str, bytes], tmp_path: Path
) -> None:
    revision = pull(URL, to=tmp_path / "elsewhere").manifest.revision
    checkpoint = CheckpointConfig(source=URL, revision=revision)
    folder = resolve_checkpoint(checkpoint)
    assert folder.name == revision

    upload(bucket, {"config.json": b"{ }"})
    assert resolve_checkpoint(checkpoint) == folder  # files on this machine need no store
    with pytest.raises(CheckpointError, match=f"is now at revision .*, not at {'0' * 64}"):
        resolve_checkpoint(CheckpointConfig(source=URL, revision="0" * 64))


def test_a_file_url_is_an_object_store(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated_environment(monkeypatch, tmp_path, "http://127.0.0.1:9")
    fetched = pull(f"file://{checkpoints['bert']}")
    assert (fetched.folder / WEIGHTS).read_bytes() == (checkpoints["bert"] / WEIGHTS).read_bytes()


def test_errors_for_a_missing_folder_and_a_missing_package(bucket: MemoryFileSystem, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="bucket://models/none does not exist"):
        pull("bucket://models/none")
    with pytest.raises(CheckpointError, match="cannot read nosuchstore://models: Protocol not known"):
        pull("nosuchstore://models")
    fsspec.register_implementation("missing", "not_installed.Store", clobber=True, errtxt="install it")
    with pytest.raises(CheckpointError, match=r"needs a package that is not installed: pip install 'rerank-service\["):
        pull("missing://models/tiny")
