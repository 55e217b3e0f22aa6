"""Voyage's API: a body without `top_k` may also come from a client of Jina, which has `truncation` too."""

import httpx
import pytest

from tests.unit.http.dialects.forms import DOCUMENTS, TEXTS


@pytest.mark.parametrize("returns_documents", [True, False])
async def test_truncation_without_top_k_is_answered_for_jinas_clients_too(
    client: httpx.AsyncClient, returns_documents: bool
) -> None:
    body = DOCUMENTS | {"truncation": True, "return_documents": returns_documents}
    answer = (await client.post("/v1/rerank", json=body)).json()

    assert answer["results"] == answer["data"]
    documents = [place.get("document") for place in answer["data"]]
    assert documents == [TEXTS[place["index"]] if returns_documents else None for place in answer["data"]]


async def test_top_k_is_voyages_alone(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/rerank", json=DOCUMENTS | {"truncation": True, "top_k": 1})).json()
    assert set(answer) == {"object", "data", "model", "usage"}
