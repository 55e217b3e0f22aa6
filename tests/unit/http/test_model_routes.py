"""Routes that clients call before they rank: models, limits, health and versions, in each vendor's form."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from rerank_service import __version__
from rerank_service.config import DialectName, ModelConfig
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import embedded_model, local_model

ID = "nvidia/llama-3.2-rerank"
UNICODE = "東京/モデル café"
ALL = tuple(DialectName)
OF_DIALECTS = {
    "/health": {"vllm", "infinity", "tei"},
    "/ping": {"vllm", "tei"},
    "/version": {"vllm"},
    "/models": {"infinity"},
    "/info": {"tei"},
    "/v1/cluster/auth": {"cohere", "jina"},
}
"""The dialects to which a route belongs."""
NEED_A_KEY = {"/v1/models", f"/v1/models/{ID}", "/models", "/info"}
INFO = {
    "type": "object",
    "required": [
        *("model_id", "model_dtype", "served_model_name", "model_type", "max_concurrent_requests", "max_input_length"),
        *("max_batch_tokens", "max_client_batch_size", "auto_truncate", "tokenization_workers", "version"),
    ],
    "properties": {
        **{name: {"type": "string"} for name in ("model_id", "model_dtype", "served_model_name", "version")},
        **{
            name: {"type": "integer", "minimum": 1}
            for name in ("max_concurrent_requests", "max_input_length", "max_batch_tokens", "max_client_batch_size")
        },
        "auto_truncate": {"type": "boolean"},
        "max_batch_requests": {"type": ["integer", "null"]},
        "model_sha": {"type": ["string", "null"]},
        "model_type": {
            "type": "object",
            "required": ["reranker"],
            "additionalProperties": False,  # Dify takes the first key
            "properties": {"reranker": {"type": "object", "required": ["id2label", "label2id"]}},
        },
    },
}
"""Answer of text-embeddings-inference's `/info`, after that project's OpenAPI document."""


def served(dialects: Sequence[str] = ALL, **settings: Any) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    """A client of a service without replicas."""
    model = embedded_model().model_copy(update={"id": ID, "aliases": ("nvidia/new-name", "short", UNICODE)})
    return client_of(local_api([model], {}, dialects=list(dialects), **settings))


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with served() as c:
        yield c


@pytest.mark.parametrize("path", OF_DIALECTS)
@pytest.mark.parametrize("dialect", ALL)
async def test_a_route_is_served_with_its_dialects(path: str, dialect: str) -> None:
    async with served([dialect]) as client:
        status = (await client.get(path)).status_code

    assert (status != 404) == (dialect in OF_DIALECTS[path])


async def test_without_dialects_only_nvidias_routes_are_served() -> None:
    async with served([]) as client:
        statuses = {path: (await client.get(path)).status_code for path in (*OF_DIALECTS, *NEED_A_KEY)}

    assert {path for path, status in statuses.items() if status == 200} == {"/v1/models", f"/v1/models/{ID}"}


async def test_routes_that_describe_models_need_a_key_and_probes_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "secret")
    async with served() as client:
        for path in {*OF_DIALECTS, *NEED_A_KEY}:
            without = (await client.get(path)).status_code
            with_key = (await client.get(path, headers={"x-api-key": "secret"})).status_code
            assert (without == 401) == (path in NEED_A_KEY), path
            assert with_key != 401
        assert (await client.get("/v1/cluster/auth")).json() == {"auth": True}


async def test_head_is_answered_wherever_get_is(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()["paths"]
    paths = {path.replace("{model}", ID) for path, operations in document.items() if "get" in operations}
    assert {*OF_DIALECTS, "/metrics", "/v1/health/ready"} < paths
    assert not [path for path, operations in document.items() if "head" in operations]

    for path in {*paths, "/", "/docs", "/openapi.json", "/playground/playground.js"}:
        head, get = await client.head(path), await client.get(path)
        assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"]), path


async def test_a_wrong_method_on_a_get_route_names_both_methods(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/models", json={})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.json()["message"].startswith("POST is not allowed on /v1/models; use GET, HEAD; rankings are at ")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (ID, ID),
        ("nvidia%2Fllama-3.2-rerank", ID),
        ("NVIDIA/Llama-3.2-Rerank", ID),
        (f"{ID}/", ID),
        (f"/{ID}", ID),
        ("nvidia/new-name", "nvidia/new-name"),
        ("short", "short"),
        ("%E6%9D%B1%E4%BA%AC%2F%E3%83%A2%E3%83%87%E3%83%AB%20caf%C3%A9", UNICODE),
        ("東京/モデル café", UNICODE),
    ],
)
async def test_a_model_is_found_by_its_name(client: httpx.AsyncClient, path: str, name: str) -> None:
    answer = await client.get(f"/v1/models/{path}")

    assert answer.status_code == 200
    assert answer.json()["model_type"] == "rerank"
    assert (answer.json()["id"], answer.json()["root"]) == (name, ID)
    assert answer.json() in (await client.get("/v1/models")).json()["data"]


@pytest.mark.parametrize("name", ["nope", "nvidia", "nvidia/llama-3.2-rerank/x", "%00", "..%2Fv1", "%FF", "a" * 5000])
async def test_an_unknown_model_is_404(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/v1/models/{name}")

    assert answer.status_code == 404
    assert answer.json()["detail"][0]["loc"] == ["path", "model"]
    assert answer.json()["detail"][0]["type"] == "model_not_found"
    assert ID in answer.json()["message"]
    assert len(answer.text) < 2000


async def test_the_list_is_also_at_a_trailing_slash(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models/")).json() == (await client.get("/v1/models")).json()


async def test_the_models_in_infinitys_form(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/models")).json()

    assert answer["object"] == "list"
    assert [entry["id"] for entry in answer["data"]] == [ID, "nvidia/new-name", "short", UNICODE]
    for entry in answer["data"]:
        assert (entry["object"], entry["owned_by"], entry["capabilities"]) == ("model", "infinity", ["rerank"])
        assert isinstance(entry["stats"], dict)


async def test_versions(client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).json() == {"version": __version__}


async def test_without_keys_xinferences_clients_send_none(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/cluster/auth")).json() == {"auth": False}


@pytest.fixture
def models(checkpoints: dict[str, Path]) -> list[ModelConfig]:
    return [local_model(checkpoints["mistral"]), local_model(checkpoints["llama_bidirec"], window_tokens=64)]


async def test_health_is_readiness(models: list[ModelConfig]) -> None:
    gate = asyncio.Event()
    working = LocalReplica(models[0])

    class Late:
        def remote(self, shard: Any) -> Any:
            async def score() -> Any:
                await gate.wait()
                return await working.remote(shard)

            return asyncio.ensure_future(score())

    async with client_of(local_api(models[:1], {models[0].id: Late()})) as client:
        early = {path: await client.get(path) for path in ("/health", "/ping")}
        gate.set()
        while (await client.get("/v1/health/ready")).status_code == 503:
            await asyncio.sleep(0.01)
        late = {path: await client.get(path) for path in ("/health", "/ping")}

    assert {answer.status_code for answer in early.values()} == {503}
    assert {answer.status_code for answer in late.values()} == {200}
    assert isinstance(late["/health"].json()["unix"], float)


async def test_info_has_the_default_models_limits(models: list[ModelConfig]) -> None:
    default = models[1]
    replicas = {model.id: LocalReplica(model) for model in models}
    settings: dict[str, Any] = {"service": {"default_model": default.id}, "limits": {"max_passages": 7}}
    async with client_of(local_api(models, replicas, **settings)) as client:
        while (await client.get("/health")).status_code == 503:
            await asyncio.sleep(0.01)
        info = (await client.get("/info")).json()

    Draft202012Validator(INFO).validate(info)
    assert (info["model_id"], info["max_input_length"], info["max_client_batch_size"]) == (default.id, 64, 7)
    assert (info["model_dtype"], info["auto_truncate"]) == ("float32", True)


async def test_info_has_the_limits_of_its_path() -> None:
    async with served(limits={"max_documents": 900}, paths={"/rerank": {"truncate": "NONE"}}) as client:
        info = (await client.get("/info")).json()

    assert (info["max_client_batch_size"], info["auto_truncate"]) == (900, False)


async def test_the_models_window_is_known_once_a_replica_has_answered() -> None:
    """The checkpoint defines the window of this model; the ingress does not read checkpoints."""
    model = embedded_model()
    assert model.window_tokens is None
    async with client_of(local_api([model], {model.id: LocalReplica(model)})) as client:
        early = (await client.get("/v1/models")).json()["data"][0], (await client.get("/info")).json()
        while (await client.get("/health")).status_code == 503:
            await asyncio.sleep(0.01)
        late = (await client.get("/v1/models")).json()["data"][0], (await client.get("/info")).json()

    assert ("max_model_len" in early[0], early[1]["max_input_length"]) == (False, 512)
    assert late[0]["max_model_len"] == late[1]["max_input_length"] > 0


@pytest.mark.parametrize(
    ("private", "closed"),
    [
        ((), set()),
        (("metrics",), {"/metrics", "/v1/metrics"}),
        (("metadata",), {"/v1/metadata", "/v1/manifest"}),
        (("metrics", "metadata"), {"/metrics", "/v1/metrics", "/v1/metadata", "/v1/manifest"}),
    ],
)
async def test_metrics_and_metadata_need_a_key_if_the_configuration_says_so(
    private: tuple[str, ...], closed: set[str]
) -> None:
    auth = {"key_hashes": [hashlib.sha256(b"nvapi-secret").hexdigest()], "private_routes": private}
    routes = ["/metrics", "/v1/metrics", "/v1/metadata", "/v1/manifest", "/v1/health/live", "/v1/version"]
    async with served(auth=auth) as client:
        without = {path: (await client.get(path)).status_code for path in routes}
        with_key = [await client.get(path, headers={"authorization": "Bearer nvapi-secret"}) for path in routes]
        described = (await client.get("/openapi.json")).json()["paths"]

    assert without == {path: 401 if path in closed else 200 for path in routes}
    assert {answer.status_code for answer in with_key} == {200}
    assert {path for path in routes if path in described and "security" not in described[path]["get"]} == closed
