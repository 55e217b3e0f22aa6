"""Requests from web pages on other hosts."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from rerank_service.config import ServiceConfig
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import embedded_model, local_model

PAGE = "https://app.example.com"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-api-key",
}
BODY = {"query": {"text": "a query"}, "passages": [{"text": "one"}]}


def served(*origins: str) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    """A client of a service that allows these origins."""
    return client_of(local_api([embedded_model()], {}, service={"cors_allow_origins": origins}))


@pytest.mark.parametrize("path", ["/v1/ranking", "/v1/rerank", "/rerank", "/v1/models", "/v1/rerank/"])
async def test_a_preflight_request_needs_no_key(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "secret")
    async with served(PAGE) as client:
        answer = await client.options(path, headers=PREFLIGHT)

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert {"GET", "HEAD", "POST"} == set(answer.headers["access-control-allow-methods"].split(", "))
    assert "x-api-key" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers


async def test_answers_and_errors_can_be_read_by_an_allowed_page(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "secret")
    model = local_model(checkpoints["llama_bidirec"])
    settings: Any = {"service": {"cors_allow_origins": [PAGE]}}
    async with client_of(local_api([model], {model.id: LocalReplica(model)}, **settings)) as client:
        key = {"authorization": "Bearer secret"}
        answers = {
            200: await client.post("/v1/ranking", json=BODY, headers={"origin": PAGE, **key}),
            400: await client.post("/v1/ranking", json={}, headers={"origin": PAGE, **key}),
            401: await client.post("/v1/ranking", json=BODY, headers={"origin": PAGE}),
            404: await client.get("/nowhere", headers={"origin": PAGE}),
        }
        foreign = await client.post("/v1/ranking", json=BODY, headers={"origin": "https://evil.example", **key})

    assert {status: answer.status_code for status, answer in answers.items()} == {one: one for one in answers}
    for answer in answers.values():
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["access-control-expose-headers"] == "*"
        assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-origin" not in foreign.headers


async def test_another_page_is_refused() -> None:
    async with served(PAGE) as client:
        answer = await client.options("/v1/ranking", headers=PREFLIGHT | {"origin": "https://app.example.com.evil"})

    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


async def test_a_star_allows_every_page() -> None:
    async with served("*") as client:
        preflight = await client.options("/v2/rerank", headers=PREFLIGHT)
        answer = await client.get("/v1/models", headers={"origin": "null"})

    assert preflight.headers["access-control-allow-origin"] == answer.headers["access-control-allow-origin"] == "*"


async def test_it_is_off_by_default() -> None:
    async with served() as client:
        preflight = await client.options("/v1/ranking", headers=PREFLIGHT)
        answer = await client.get("/v1/models", headers={"origin": PAGE})

    assert (preflight.status_code, preflight.headers["allow"]) == (405, "POST")
    assert not [name for one in (preflight, answer) for name in one.headers if name.startswith("access-control-")]


async def test_the_playgrounds_policy_does_not_change() -> None:
    async with served() as client:
        before = await client.get("/")
    async with served("*") as client:
        after = await client.get("/", headers={"origin": PAGE})

    assert "connect-src 'self'" in before.headers["content-security-policy"]
    for name in ("content-security-policy", "cross-origin-resource-policy", "etag", "cache-control"):
        assert before.headers[name] == after.headers[name]


@pytest.mark.parametrize("origin", ["https://app.example.com/", "app.example.com", "https://a.example/path", "", "**"])
def test_an_origin_must_have_a_scheme_and_no_path(origin: str) -> None:
    with pytest.raises(ValidationError):
        ServiceConfig(cors_allow_origins=(origin,))
