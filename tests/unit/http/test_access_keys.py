"""Accepted keys, the file of key hashes, and the caller of a request."""

import hashlib
import os
from pathlib import Path

import pytest

from rerank_service.config import AuthConfig
from rerank_service.errors import ConfigError, InvalidApiKey
from rerank_service.http.access import ApiKeys
from tests.local_service import client_of, local_api
from tests.models import embedded_model


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def bearer(value: str | None) -> dict[str, str]:
    return {} if value is None else {"authorization": value}


@pytest.fixture(autouse=True)
def _no_keys_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RERANK_SERVICE_API_KEYS", raising=False)


@pytest.mark.parametrize("header", [None, "", "Bearer NO_API_KEY_PROVIDED", "Bearer **********", "junk"])
def test_without_keys_everything_is_accepted(header: str | None) -> None:
    keys = ApiKeys(AuthConfig())
    assert not keys.are_required
    assert keys.authenticate(bearer(header), "1.1.1.1") == keys.authenticate(bearer(None), "1.1.1.1")


def test_without_keys_callers_are_addresses() -> None:
    keys = ApiKeys(AuthConfig())
    assert keys.authenticate(bearer(None), "1.1.1.1") != keys.authenticate(bearer(None), "2.2.2.2")
    assert keys.authenticate(bearer("Bearer one"), "1.1.1.1") == keys.authenticate(bearer("Bearer two"), "1.1.1.1")


def test_callers_are_digests_of_keys_and_keys_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "one,two")
    keys = ApiKeys(AuthConfig())
    one = keys.authenticate(bearer("Bearer one"), "1.1.1.1")
    assert one == keys.authenticate(bearer("bearer one "), "2.2.2.2") != keys.authenticate(bearer("Bearer two"), None)
    assert "one" not in one


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "nvapi-one, nvapi-two,,")
    keys = ApiKeys(AuthConfig())

    keys.authenticate(bearer("Bearer nvapi-one"))
    keys.authenticate(bearer("bearer  nvapi-two"))
    for header in (None, "", "Bearer", "Bearer ", "Basic nvapi-one", "nvapi-one"):
        with pytest.raises(InvalidApiKey) as caught:
            keys.authenticate(bearer(header))
        assert caught.value.is_missing
    for header in ("Bearer nvapi-on", "Bearer nvapi-one,nvapi-two", "Bearer nvapi-one2", "Bearer \udcff"):
        with pytest.raises(InvalidApiKey) as caught:
            keys.authenticate(bearer(header))
        assert not caught.value.is_missing


def test_hashes_in_the_configuration() -> None:
    keys = ApiKeys(AuthConfig(key_hashes=(digest("one"), digest("two"))))
    assert keys.are_required
    assert keys.authenticate(bearer("Bearer one")) != keys.authenticate(bearer("Bearer two"))
    with pytest.raises(InvalidApiKey):
        keys.authenticate(bearer("Bearer three"))


def test_a_changed_file_of_hashes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# staff\n{digest('old')}  # until Friday\n\n")
    keys = ApiKeys(AuthConfig(key_hashes_file=path))
    keys.authenticate(bearer("Bearer old"))

    path.write_text(f"{digest('new').upper()}\n")
    os.utime(path, ns=(1, 1))  # even if the clock is too coarse to show the change

    keys.authenticate(bearer("Bearer new"))
    with pytest.raises(InvalidApiKey):
        keys.authenticate(bearer("Bearer old"))


def test_the_previous_keys_stay_valid_while_the_file_is_malformed_or_missing(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(digest("key"))
    keys = ApiKeys(AuthConfig(key_hashes_file=path))

    path.write_text("half a ha")
    keys.authenticate(bearer("Bearer key"))
    path.unlink()
    keys.authenticate(bearer("Bearer key"))
    with pytest.raises(InvalidApiKey):
        keys.authenticate(bearer("Bearer other"))


def test_an_empty_file_accepts_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# none yet\n")
    keys = ApiKeys(AuthConfig(key_hashes_file=path))

    assert keys.are_required
    with pytest.raises(InvalidApiKey):
        keys.authenticate(bearer("Bearer anything"))


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


KEYS = {"x-api-key": "valid", "api-key": "valid", "authorization": "Bearer valid"}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("other", ["Bearer random", "Basic dXNlcg==", "Bearer", "random", ""])
def test_a_valid_key_in_any_header_is_enough_and_names_the_caller(name: str, other: str) -> None:
    """Random values in the other headers must not give a caller new quotas."""
    keys = ApiKeys(AuthConfig(key_hashes=(digest("valid"),)))
    alone = keys.authenticate(bearer("Bearer valid"), "1.1.1.1")

    assert keys.authenticate({**dict.fromkeys(KEYS, other), name: KEYS[name]}, "2.2.2.2") == alone


def test_two_valid_keys_have_one_caller() -> None:
    keys = ApiKeys(AuthConfig(key_hashes=(digest("one"), digest("two"))))

    both = keys.authenticate({"x-api-key": "two", "authorization": "Bearer one", "api-key": "two"})

    assert both == keys.authenticate(bearer("Bearer one"))


def test_the_key_headers_are_a_setting() -> None:
    keys = ApiKeys(AuthConfig(key_hashes=(digest("valid"),), key_headers=("X-Goog-Api-Key",)))

    keys.authenticate({"x-goog-api-key": "valid"})
    keys.authenticate({"x-goog-api-key": "Bearer valid"})
    keys.authenticate(bearer("Bearer valid"))
    for headers in ({"x-api-key": "valid"}, {"api-key": "valid"}, {}, {"x-goog-api-key": " "}):
        with pytest.raises(InvalidApiKey) as caught:
            keys.authenticate(headers)
        assert caught.value.is_missing
    with pytest.raises(InvalidApiKey) as caught:
        keys.authenticate({"x-goog-api-key": "valid2", "authorization": "Bearer other"})
    assert not caught.value.is_missing


async def test_a_random_header_next_to_a_valid_key_does_not_evade_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "valid")
    api = local_api([embedded_model()], {}, rate_limits={"requests_per_minute": 3})
    async with client_of(api) as client:
        answers = [
            await client.post("/v1/ranking", json={}, headers={"x-api-key": "valid", "authorization": f"Bearer {n}"})
            for n in range(5)
        ]
        models = await client.get("/v1/models", headers={"api-key": "valid"})
        refused = await client.get("/v1/models", headers={"api-key": "other"})

    assert [answer.status_code for answer in answers] == [400, 400, 400, 429, 429]
    assert (models.status_code, refused.status_code) == (200, 401)
