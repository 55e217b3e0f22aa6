"""Fields that an API does not have: ignored and named, or refused."""

from typing import Any

import httpx
import pytest

from rerank_service.config import ModelConfig
from tests.unit.http.dialects.forms import ALL_FORMS, ask, message_of, places, serving


@pytest.mark.parametrize("name", ["vllm", "infinity", "tei"])
async def test_the_strict_setting_ignores_what_the_vendors_server_ignores(model: ModelConfig, name: str) -> None:
    async with serving(model, limits={"unknown_fields": "reject"}) as client:
        assert (await ask(client, name, surprise=1)).status_code == 200


@pytest.mark.parametrize("name", ALL_FORMS)
async def test_unknown_fields_are_ignored_and_named(client: httpx.AsyncClient, name: str) -> None:
    response = await ask(client, name, surprise=1, kwargs="{}")

    assert response.status_code == 200
    assert places(response.json()) == places((await ask(client, name)).json())
    assert response.headers["x-ignored-fields"] == "surprise, kwargs"


STRICT: list[tuple[str, dict[str, Any], int, str]] = [
    ("jina", {"surprise": 1}, 422, "surprise is not a field of this API"),
    ("cohere v2", {"relevant_spans": {}}, 400, "relevant_spans is not a field of this API; accepted here: model, "
     "query, documents, top_n, max_tokens_per_doc, return_documents, priority"),
    ("voyage", {"truncate": True}, 400, "truncate is not a field of this API; accepted here: query, documents, model, "
     "top_k, return_documents, truncation"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "status", "message"), STRICT)
async def test_the_strict_setting_refuses_unknown_fields(
    model: ModelConfig, name: str, changes: dict[str, Any], status: int, message: str
) -> None:
    async with serving(model, limits={"unknown_fields": "reject"}) as client:
        response = await ask(client, name, **changes)
    assert response.status_code == status
    assert message in message_of(response.json())
