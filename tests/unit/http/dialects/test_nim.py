"""Bodies of `/v1/ranking`: null fields, the default of `truncate`, content parts, and images, which are refused.

NVIDIA's clients for multimodal rerankers send `{"text": ..., "image": ...}` (langchain-nvidia-ai-endpoints 1.x, and the
RAG blueprint's NVIDIAVLMRerank); clients of vLLM's multimodal rerankers send content parts.
"""

from typing import Any

import httpx
import pytest

from rerank_service.config import ModelConfig
from tests.unit.http.dialects.forms import LONG, QUERY, serving

BODY: dict[str, Any] = {"query": {"text": "which way?"}, "passages": [{"text": "a"}, {"text": "b\nc"}, {"text": "d"}]}
PARTS = [
    {"content": [{"type": "text", "text": "a"}]},
    {"content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
    {"text": "d"},
]
IMAGE = "data:image/png;base64,AAAA"


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
    async with serving(model, limits=limits) as client:
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


async def test_null_means_absent_in_nvidias_api(client: httpx.AsyncClient) -> None:
    body = {"query": {"text": QUERY}, "passages": [{"text": LONG}], "passage_windows": {}}
    windows = dict.fromkeys(("max_per_passage", "tokens", "overlap_tokens"))
    nulls = body | {"model": None, "truncate": None, "explain": None, "passage_windows": windows}

    answers = [(await client.post("/v1/ranking", json=one)).json() for one in (body, nulls)]

    assert answers[0] == answers[1]


async def test_the_default_of_truncate_in_nvidias_api_is_a_setting(model: ModelConfig) -> None:
    body = {"query": {"text": QUERY}, "passages": [{"text": LONG}]}
    for paths, status in (({}, 200), ({"/v1/ranking": {"truncate": "NONE"}}, 400)):
        async with serving(model, paths=paths) as client:
            schema = (await client.get("/openapi.json")).json()["components"]["schemas"]["RankingRequest"]
            for path in ("/v1/ranking", "/v1/retrieval/nvidia/reranking"):
                assert (await client.post(path, json=body)).status_code == status
                assert (await client.post(path, json=body | {"truncate": "END"})).status_code == 200
                assert (await client.post(path, json=body | {"truncate": None})).status_code == status
        assert schema["properties"]["truncate"]["default"] == ("END" if status == 200 else "NONE")
