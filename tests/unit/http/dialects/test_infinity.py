"""Infinity's API: its name for the default model, and its validation errors."""

import httpx

from tests.unit.http.dialects.forms import DOCUMENTS, ask


async def test_infinitys_name_for_the_default_model(client: httpx.AsyncClient) -> None:
    response = await client.post("/rerank", json=DOCUMENTS | {"model": "default/not-specified"})
    assert response.json()["object"] == "rerank"


async def test_infinity_adds_the_problems_in_fastapis_form(client: httpx.AsyncClient) -> None:
    answer = (await ask(client, "infinity", query=5)).json()
    assert answer["detail"] == [
        {"loc": ["body", "query"], "msg": "query must be a valid string", "type": "string_type"}
    ]
