"""The full digests of a file, and the faults that the quick digest detects."""

import hashlib
from pathlib import Path

import pytest

from rerank_service.checkpoints import verification
from rerank_service.checkpoints.verification import quick_digest, read_digests


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(verification, "SAMPLED_ABOVE_BYTES", 1_000_000)
    path = tmp_path / "large"
    path.write_bytes(hashlib.shake_256(b"seed").digest(10_000_019))
    return path


def changed(path: Path, start: int, replacement: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[start : start + len(replacement)] = replacement
    copy = path.with_name("changed")
    copy.write_bytes(content)
    return copy


def test_the_git_digest_equals_that_of_git_hash_object(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello\n")
    found = read_digests(tmp_path / "file")
    assert found.git_sha1 == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert found.sha256 == hashlib.sha256(b"hello\n").hexdigest()
    assert quick_digest(tmp_path / "file") == found.sha256


def test_all_bytes_are_read_and_progress_is_reported(large: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    found = read_digests(large, lambda *report: reports.append(report))
    assert found.sha256 == hashlib.sha256(large.read_bytes()).hexdigest()
    assert reports == [("checking", 8, 10), ("checking", 10, 10)]


@pytest.mark.parametrize("start", [0, 1, 10_000_018, 5_000_000, 9_900_000])
def test_the_quick_digest_detects_a_gap_of_a_64th_anywhere(large: Path, start: int) -> None:
    hole = bytes(min(10_000_019 // 63 + 1, 10_000_019 - start))
    assert quick_digest(changed(large, start, hole)) != quick_digest(large)


def test_the_quick_digest_detects_a_truncated_file(large: Path) -> None:
    before = quick_digest(large)
    large.write_bytes(large.read_bytes()[:-1])
    assert quick_digest(large) != before


def test_only_the_full_digest_detects_a_changed_byte_between_the_samples(large: Path) -> None:
    other = changed(large, 70_000, bytes([large.read_bytes()[70_000] ^ 1]))
    assert quick_digest(other) == quick_digest(large)
    assert read_digests(other).sha256 != read_digests(large).sha256
