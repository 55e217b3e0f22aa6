"""Accepted keys, the file of key hashes, and the caller of a request."""

import hashlib
import os
from pathlib import Path

import pytest

from rerank_service.config import AuthConfig
from rerank_service.errors import ConfigError, InvalidApiKey
from rerank_service.http.access import ApiKeys


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(autouse=True)
def _no_keys_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RERANK_SERVICE_API_KEYS", raising=False)


@pytest.mark.parametrize("header", [None, "", "Bearer NO_API_KEY_PROVIDED", "Bearer **********", "junk"])
def test_without_keys_everything_is_accepted(header: str | None) -> None:
    keys = ApiKeys(AuthConfig())
    assert not keys.are_required
    assert keys.authenticate(header, "1.1.1.1") == keys.authenticate(None, "1.1.1.1")


def test_without_keys_callers_are_addresses() -> None:
    keys = ApiKeys(AuthConfig())
    assert keys.authenticate(None, "1.1.1.1") != keys.authenticate(None, "2.2.2.2")
    assert keys.authenticate("Bearer one", "1.1.1.1") == keys.authenticate("Bearer two", "1.1.1.1")


def test_callers_are_digests_of_keys_and_keys_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "one,two")
    keys = ApiKeys(AuthConfig())
    one = keys.authenticate("Bearer one", "1.1.1.1")
    assert one == keys.authenticate("bearer one ", "2.2.2.2") != keys.authenticate("Bearer two", None)
    assert "one" not in one


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "nvapi-one, nvapi-two,,")
    keys = ApiKeys(AuthConfig())

    keys.authenticate("Bearer nvapi-one")
    keys.authenticate("bearer  nvapi-two")
    for header in (None, "", "Bearer", "Bearer ", "Basic nvapi-one", "nvapi-one"):
        with pytest.raises(InvalidApiKey) as caught:
            keys.authenticate(header)
        assert caught.value.is_missing
    for header in ("Bearer nvapi-on", "Bearer nvapi-one,nvapi-two", "Bearer nvapi-one2", "Bearer \udcff"):
        with pytest.raises(InvalidApiKey) as caught:
            keys.authenticate(header)
        assert not caught.value.is_missing


def test_hashes_in_the_configuration() -> None:
    keys = ApiKeys(AuthConfig(key_hashes=(digest("one"), digest("two"))))
    assert keys.are_required
    assert keys.authenticate("Bearer one") != keys.authenticate("Bearer two")
    with pytest.raises(InvalidApiKey):
        keys.authenticate("Bearer three")


def test_a_changed_file_of_hashes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# staff\n{digest('old')}  # until Friday\n\n")
    keys = ApiKeys(AuthConfig(key_hashes_file=path))
    keys.authenticate("Bearer old")

    path.write_text(f"{digest('new').upper()}\n")
    os.utime(path, ns=(1, 1))  # even if the clock is too coarse to show the change

    keys.authenticate("Bearer new")
    with pytest.raises(InvalidApiKey):
        keys.authenticate("Bearer old")


def test_the_previous_keys_stay_valid_while_the_file_is_malformed_or_missing(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(digest("key"))
    keys = ApiKeys(AuthConfig(key_hashes_file=path))

    path.write_text("half a ha")
    keys.authenticate("Bearer key")
    path.unlink()
    keys.authenticate("Bearer key")
    with pytest.raises(InvalidApiKey):
        keys.authenticate("Bearer other")


def test_an_empty_file_accepts_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# none yet\n")
    keys = ApiKeys(AuthConfig(key_hashes_file=path))

    assert keys.are_required
    with pytest.raises(InvalidApiKey):
        keys.authenticate("Bearer anything")


@pytest.mark.parametrize("content", ["plain-text-key", "0" * 63, digest("a") + "0"])
def test_a_malformed_file_fails_at_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{digest('ok')}\n{content}\n")
    with pytest.raises(ConfigError, match="line 2: not a SHA-256") as caught:
        ApiKeys(AuthConfig(key_hashes_file=path))
    assert content not in str(caught.value)


def test_a_missing_file_fails_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        ApiKeys(AuthConfig(key_hashes_file=tmp_path / "nowhere"))
