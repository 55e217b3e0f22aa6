"""Forms of passages at `/v1/ranking`: texts, content parts, null fields, and images, which are refused.

NVIDIA's clients for multimodal rerankers send `{"text": ..., "image": ...}` (langchain-nvidia-ai-endpoints 1.x, and the
RAG blueprint's NVIDIAVLMRerank); clients of vLLM's multimodal rerankers send content parts.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rerank_service.config import ModelConfig
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import local_model

BODY: dict[str, Any] = {"query": {"text": "which way?"}, "passages": [{"text": "a"}, {"text": "b\nc"}, {"text": "d"}]}
PARTS = [
    {"content": [{"type": "text", "text": "a"}]},
    {"content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
    {"text": "d"},
]
IMAGE = "data:image/png;base64,AAAA"
LONG = "long " * 200


@pytest.fixture
def model(checkpoints: dict[str, Path]) -> ModelConfig:
    return local_model(checkpoints["llama_bidirec"], window_tokens=64)


@pytest.fixture
async def client(model: ModelConfig) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(local_api([model], {model.id: LocalReplica(model)})) as c:
        yield c


async def answer(client: httpx.AsyncClient, passages: Any, **changes: Any) -> httpx.Response:
    return await client.post("/v1/ranking", json=BODY | {"passages": passages} | changes)


async def test_parts_that_are_only_text_are_ranked_as_lines(client: httpx.AsyncClient) -> None:
    plain, parts = await answer(client, BODY["passages"]), await answer(client, PARTS)

    assert parts.status_code == 200, parts.text
    assert parts.json() == plain.json()
    assert "x-ignored-fields" not in parts.headers


async def test_other_fields_of_a_passage_with_parts_are_ignored_and_named(client: httpx.AsyncClient) -> None:
    response = await answer(client, [PARTS[0] | {"id": 7}, *PARTS[1:]], top_n=1)

    assert response.json() == (await answer(client, PARTS)).json()
    assert sorted(response.headers["x-ignored-fields"].split(", ")) == ["passages.id", "top_n"]


@pytest.mark.parametrize("unknown_fields", ["ignore", "reject"])
async def test_a_null_field_is_absent_everywhere(model: ModelConfig, unknown_fields: str) -> None:
    nulls = {"image": None, "content": None}
    body = {
        "passages": [passage | nulls for passage in BODY["passages"]],
        "query": BODY["query"] | nulls,
        "top_n": None,
    }
    limits = {"unknown_fields": unknown_fields}
    async with client_of(local_api([model], {model.id: LocalReplica(model)}, limits=limits)) as client:
        response = await answer(client, **body)

        assert response.status_code == 200, response.text
        assert response.json() == (await answer(client, BODY["passages"])).json()
    assert "x-ignored-fields" not in response.headers


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"passages": [{"text": "a", "image": IMAGE}]}, "passages[0].image is an image; this service ranks only text"),
    ({"passages": [{"text": "a"}, {"image": IMAGE}]}, "passages[1].image is an image; this service ranks only text"),
    ({"passages": [{"text": None, "image": IMAGE}]}, "passages[0].image is an image; this service ranks only text"),
    ({"passages": [PARTS[0] | {"image": IMAGE}]}, "passages[0].image is an image; this service ranks only text"),
    ({"passages": [{"text": "a"}, {"content": [*PARTS[0]["content"], {"type": "image_url", "image_url": {}}]}]},
     "passages[1] has a content part of image_url; this service ranks only text parts"),
    ({"passages": [{"content": [{"type": "my secret"}]}]},
     "passages[0] has a content part of no known type; this service ranks only text parts"),
    ({"passages": [{"content": []}]}, "passages[0].text is required; passages[0].content is not a field of this API; "
     "accepted here: text"),
    ({"passages": [{"text": None}]}, "passages[0].text is required"),
    ({"passages": None}, "passages is required"),
    ({"query": {"text": None}}, "query.text is required"),
    ({"passages": [PARTS[0], {"text": LONG}], "truncate": "NONE"}, "query.text with passages[1].text"),
    ({"passages": [{"text": "a"}, {"content": [{"type": "text", "text": LONG}]}], "truncate": "NONE"},
     "(query.text with passages[1])"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED)
async def test_an_error_names_the_passage(client: httpx.AsyncClient, changes: dict[str, Any], message: str) -> None:
    response = await client.post("/v1/ranking", json=BODY | changes)

    assert response.status_code == 400
    assert message in response.json()["message"]
    assert "Input length" in response.json()["message"] or response.json()["message"] == message
    assert "secret" not in response.text
