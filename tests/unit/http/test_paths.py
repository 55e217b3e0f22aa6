"""Superfluous slashes in paths, with and without a route prefix."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from rerank_service.config import ModelConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.http.paths import without_extra_slashes
from rerank_service.http.proxies.headers import proxy_middlewares
from tests.local_service import LocalReplica, local_api
from tests.models import local_model

NIM = {"query": {"text": "a query"}, "passages": [{"text": "one"}, {"text": "two"}]}
COHERE = {"query": "a query", "documents": ["one", "two"]}


@pytest.fixture(scope="module")
def model(checkpoints: dict[str, Path]) -> ModelConfig:
    return local_model(checkpoints["llama_bidirec"])


@pytest.fixture(scope="module")
def engine(model: ModelConfig) -> Engine[Any]:
    return load_engine(model)


class Serve:
    """Finds the application by its route prefix, as Serve's proxy does."""

    def __init__(self, api: FastAPI, prefix: str) -> None:
        self._api = api
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"].startswith(f"{self._prefix}/"), f"Serve has no application at {scope['path']}"
        await self._api({**scope, "root_path": self._prefix}, receive, send)


@pytest.fixture(params=["", "/apps/rerank"])
async def client(
    request: pytest.FixtureRequest, model: ModelConfig, engine: Engine[Any]
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with a route prefix or without, behind the middleware of Serve's proxy."""
    api = local_api([model], {model.id: LocalReplica(model, engine)})
    app: Any = Serve(api, request.param)
    for middleware in reversed(proxy_middlewares()):
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    transport = httpx.ASGITransport(app)
    async with api.router.lifespan_context(api), httpx.AsyncClient(transport=transport) as c:
        c.headers["x-prefix"] = request.param
        yield c


def address(client: httpx.AsyncClient, path: str, form: str = "{prefix}{path}") -> str:
    """The whole address. If the client had a base URL, it would merge some of the slashes."""
    return "http://rerank" + form.format(prefix=client.headers["x-prefix"], path=path)


FORMS = ["{prefix}{path}/", "{prefix}/{path}", "/{prefix}{path}", "//{prefix}//{path}//"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/ranking", NIM),
        ("/v1//ranking", NIM),
        ("/v1/retrieval/nvidia/reranking", NIM),
        ("/v1/rerank", COHERE),
        ("/v2/rerank", COHERE),
        ("/rerank", COHERE),
    ],
)
async def test_superfluous_slashes_reach_the_route(
    client: httpx.AsyncClient, model: ModelConfig, form: str, path: str, body: dict[str, Any]
) -> None:
    body = body | {"model": model.id}
    answer = await client.post(address(client, path, form), json=body)
    expected = await client.post(address(client, path.replace("//", "/")), json=body)

    assert answer.status_code == expected.status_code == 200
    assert answer.json().keys() == expected.json().keys()
    assert set(answer.headers) == set(expected.headers)


@pytest.mark.parametrize("body", [NIM, NIM | {"model": "none"}, NIM | {"truncate": "LEFT"}, {}])
async def test_a_ranking_is_the_same_with_and_without_fastapi_in_between(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    direct = await client.post(address(client, "/v1/ranking"), json=body)
    through_fastapi = await client.post(address(client, "/v1/ranking/"), json=body)

    assert (direct.status_code, direct.json()) == (through_fastapi.status_code, through_fastapi.json())
    assert set(direct.headers) == set(through_fastapi.headers)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/health/live", "/metrics", "/", "/docs"])
async def test_other_routes_are_found_too(client: httpx.AsyncClient, form: str, path: str) -> None:
    assert (await client.get(address(client, path, form))).status_code == 200


async def test_an_unknown_path_is_named_as_it_was_sent(client: httpx.AsyncClient) -> None:
    answer = await client.get(address(client, "/v1//nothing/"))

    assert answer.status_code == 404
    assert "/v1//nothing/;" in answer.json()["message"]


async def test_a_wrong_method_is_still_named(client: httpx.AsyncClient) -> None:
    answer = await client.get(address(client, "/v1/ranking/"))
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", "/"), ("/", "/"), ("//", "/"), ("/a", "/a"), ("//a///b//", "/a/b"), ("/a b/é/", "/a b/é")],
)
def test_slashes_are_merged(path: str, expected: str) -> None:
    assert without_extra_slashes(path) == expected
