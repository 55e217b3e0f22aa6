"""Habits of clients that Serve's proxy must pass to the ingress: slashes, compressed bodies, key headers, HEAD."""

import gzip
import json
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest

from tests.service.running import (
    CLIENT_TIMEOUT_S,
    KEY,
    LLAMA,
    Reference,
    Service,
    assert_error,
    assert_ranked,
    ranking_body,
)

BODY = ranking_body(LLAMA, "which?", ["this", "that"])
GZIP = {"content-type": "application/json", "content-encoding": "gzip"}


@pytest.fixture
def whole() -> Iterator[httpx.Client]:
    """A client without a base URL, which would merge slashes."""
    with httpx.Client(timeout=CLIENT_TIMEOUT_S) as client:
        yield client


@pytest.mark.parametrize("path", ["//v1/ranking", "/v1/ranking/", "/v1//ranking//"])
def test_superfluous_slashes_reach_the_route(
    service: Service, whole: httpx.Client, references: dict[str, Reference], path: str
) -> None:
    assert_ranked(whole.post(service.url + path, json=BODY), references[LLAMA].logits("which?", ["this", "that"]))


@pytest.mark.parametrize("path", ["/keyed//v1/models", "//keyed/v1/models/", "/keyed/v1/models//"])
@pytest.mark.parametrize("header", ["x-api-key", "api-key"])
def test_a_route_prefix_and_every_key_header_work(
    service: Service, whole: httpx.Client, path: str, header: str
) -> None:
    answer = whole.get(service.url + path, headers={header: KEY, "authorization": "Bearer random"})
    assert answer.status_code == 200
    assert answer.json() == whole.get(f"{service.keyed_url}/v1/models", headers={header: KEY}).json()
    assert_error(whole.get(service.url + path, headers={header: "other"}), 401)


def test_a_compressed_body_is_ranked(client: httpx.Client, references: dict[str, Reference]) -> None:
    packed = gzip.compress(json.dumps(BODY).encode())
    halves = iter((packed[:20], packed[20:]))
    expected = references[LLAMA].logits("which?", ["this", "that"])

    assert_ranked(client.post("/v1/ranking", content=packed, headers=GZIP), expected)
    assert_ranked(client.post("/v1/ranking", content=halves, headers=GZIP), expected)


def test_a_bomb_is_refused(client: httpx.Client) -> None:
    bomb = gzip.compress(bytes(200 * 1024 * 1024))
    assert_error(client.post("/v1/ranking", content=bomb, headers=GZIP), 413)


def test_head_has_headers_and_no_body(client: httpx.Client) -> None:
    for path in ("/v1/models", "/health", "/info", "/metrics", "/"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("form", ["{}", "{}/"])
@pytest.mark.parametrize("name", [LLAMA, quote(LLAMA, safe="")])
def test_a_model_name_may_contain_slashes(service: Service, whole: httpx.Client, name: str, form: str) -> None:
    answer = whole.get(f"{service.url}/v1/models/{form.format(name)}")
    assert (answer.status_code, answer.json()["id"]) == (200, LLAMA)
