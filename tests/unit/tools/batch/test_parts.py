"""The folder of a job: writes are atomic, one job uses it at a time, and other files are kept."""

from pathlib import Path

import pytest

from rerank_service.errors import BatchError
from rerank_service.tools.batch.chunks import Chunk
from rerank_service.tools.batch.parts import Parts, whole_file
from rerank_service.tools.batch.records import Position

CHUNKS = [Chunk(0, 0, 2, Position(0, 1), 0), Chunk(1, 2, 1, Position(9, 3), 0)]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")

    def fail_half_way() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()

    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_saved_chunks_are_read_back_in_order(tmp_path: Path) -> None:
    with Parts(tmp_path / "out.jsonl") as parts:
        assert (parts.manifest(), parts.done()) == (None, set())
        parts.write_manifest({"some": "settings"})
        parts.write(1, b"c\n")
        parts.write(0, b"a\nb\n")
        (parts.folder / "000000002.jsonl.unfinished").touch()

    with Parts(tmp_path / "out.jsonl") as parts:
        assert (parts.manifest(), parts.done()) == ({"some": "settings"}, {0, 1})
        assert list(parts.lines(CHUNKS)) == [b"a\n", b"b\n", b"c\n"]


def test_a_part_of_the_wrong_length_is_an_error(tmp_path: Path) -> None:
    with Parts(tmp_path / "out") as parts:
        parts.write(0, b"a\n")
        with pytest.raises(BatchError, match=r"000000000.jsonl has 1 lines instead of 2"):
            list(parts.lines(CHUNKS))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    second = Parts(tmp_path / "out")
    with Parts(tmp_path / "out"), pytest.raises(BatchError, match="another process is using"):
        second.__enter__()
    with second:
        pass


def test_only_the_jobs_files_are_removed(tmp_path: Path) -> None:
    for foreign in (False, True):
        with Parts(tmp_path / "out") as parts:
            parts.write_manifest({})
            parts.write(0, b"")
            if foreign:
                (parts.folder / "notes.txt").touch()
            parts.remove()
        assert parts.folder.exists() == foreign
    assert [path.name for path in parts.folder.iterdir()] == ["notes.txt"]


def test_an_output_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(BatchError, match="cannot be written: not a directory"), Parts(tmp_path / "file" / "out"):
        pass
