"""Paths that several APIs share: which API answers, and which APIs a path has."""

from typing import Any

import httpx
import pytest

from rerank_service.config import DialectName, ModelConfig
from rerank_service.errors import ConfigError
from rerank_service.http.dialects import routes_of
from tests.local_service import local_api
from tests.unit.http.dialects.forms import ALL_FORMS, COHERE_V1, DOCUMENTS, MODEL, TEI, ask, places, serving

ON_SHARED_PATHS: list[tuple[str, dict[str, Any], str]] = [
    ("/rerank", TEI | {"raw_scores": False, "truncation_direction": "Right", "top_n": 2}, "tei"),
    ("/rerank", DOCUMENTS, "vllm"),
    ("/rerank", DOCUMENTS | {"return_documents": False}, "infinity"),
    ("/v1/rerank", DOCUMENTS | {"top_n": 2, "return_documents": True}, "jina"),
    ("/v1/rerank", DOCUMENTS | {"rank_fields": ["text"]}, "cohere"),
    ("/v1/rerank", DOCUMENTS | {"top_k": 2}, "voyage"),
    ("/v1/rerank", DOCUMENTS | {"truncation": True}, "voyage"),
    ("/v1/rerank", DOCUMENTS | {"truncation": True, "top_n": 2}, "jina"),
    ("/v1/rerank", DOCUMENTS | {"truncation": True, "max_doc_length": 64}, "jina"),
    ("/v1/rerank", DOCUMENTS | {"truncate_prompt_tokens": -1}, "vllm"),
    ("/v2/rerank", DOCUMENTS | {"model": MODEL, "max_tokens_per_doc": 4096}, "cohere"),
    ("/v1/rerank", TEI | {"raw_scores": False}, "tei"),
    ("/v2/rerank", DOCUMENTS | {"truncation_side": "right"}, "vllm"),
]


@pytest.mark.parametrize(("path", "body", "dialect"), ON_SHARED_PATHS)
async def test_the_body_decides_the_dialect_on_a_shared_path(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], dialect: str
) -> None:
    assert (await client.post(path, json=body)).status_code == 200
    requests = [line for line in (await client.get("/metrics")).text.splitlines() if "requests_total{" in line]
    assert [line for line in requests if 'status="200"' in line and f'dialect="{dialect}"' in line], requests


OPTIONAL = [
    *("model", "top_n", "top_k", "return_documents", "raw_scores", "truncation", "rank_fields", "max_chunks_per_doc"),
    *("max_tokens_per_doc", "truncate_prompt_tokens", "truncation_side", "use_activation", "priority", "truncate"),
    *("truncation_direction", "return_text", "max_tokens_per_query", "instruction"),
]


@pytest.mark.parametrize("name", ALL_FORMS)
async def test_null_means_absent(client: httpx.AsyncClient, name: str) -> None:
    """A null field neither changes the answer nor selects another dialect."""
    without = (await ask(client, name)).json()
    nulls = (await ask(client, name, **dict.fromkeys(set(OPTIONAL) - ALL_FORMS[name][1].keys()))).json()

    assert places(nulls) == places(without)
    assert isinstance(without, list) or nulls.keys() == without.keys()


async def test_the_order_of_dialects_decides_if_the_body_matches_several(model: ModelConfig) -> None:
    async with serving(model, dialects=["cohere", "infinity", "vllm", "jina"]) as client:
        answer = (await client.post("/v1/rerank", json=DOCUMENTS)).json()
        assert set(answer) == {"id", "results", "meta", "model", "usage", "object"}
        assert (await client.post("/rerank", json=DOCUMENTS)).json()["object"] == "rerank"


async def test_a_path_can_prefer_an_api(model: ModelConfig) -> None:
    paths = {"/v1/rerank": {"prefer": "voyage"}, "/v2/rerank": {"prefer": "vllm"}, "/rerank": {"prefer": "infinity"}}
    async with serving(model, paths=paths) as client:
        assert set((await client.post("/v1/rerank", json=DOCUMENTS)).json()) == {"object", "data", "model", "usage"}
        assert set((await client.post("/v2/rerank", json=DOCUMENTS)).json()) == {"id", "model", "usage", "results"}
        assert (await client.post("/rerank", json=DOCUMENTS)).json()["object"] == "rerank"
        assert "results" in (await client.post("/v1/rerank", json=COHERE_V1)).json()


@pytest.mark.parametrize(("path", "api"), [("/score", "jina"), ("/v1/rerank", "infinity"), ("/v1/ranking", "vllm")])
def test_a_path_cannot_prefer_an_api_that_it_does_not_have(model: ModelConfig, path: str, api: str) -> None:
    with pytest.raises(ConfigError, match=f"paths.{path}.prefer: {path} has no API {api}; it has: "):
        local_api([model], {}, paths={path: {"prefer": api}})


async def test_a_dialect_can_be_switched_off(model: ModelConfig) -> None:
    async with serving(model, dialects=["vllm"]) as client:
        assert set((await client.post("/v2/rerank", json=DOCUMENTS)).json()) == {"id", "model", "usage", "results"}
        assert (await client.post("/rerank", json=TEI)).status_code == 400
    async with serving(model, dialects=[]) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert [(await client.post(path, json=DOCUMENTS)).status_code for path in ("/rerank", "/score")] == [404, 404]
        assert (
            await client.post("/v1/ranking", json={"query": {"text": "q"}, "passages": [{"text": "p"}]})
        ).status_code == 200
    assert not [path for path in paths if path.endswith(("/rerank", "/score"))]


def test_every_dialect_has_its_paths() -> None:
    spoken = {path: [dialect.name for dialect in dialects] for path, dialects in routes_of(list(DialectName)).items()}
    assert spoken == {
        "/v1/rerank": ["jina", "cohere", "vllm", "tei", "voyage"],
        "/v2/rerank": ["cohere", "vllm"],
        "/rerank": ["vllm", "infinity", "tei"],
        "/score": ["vllm"],
        "/v1/score": ["vllm"],
    }
