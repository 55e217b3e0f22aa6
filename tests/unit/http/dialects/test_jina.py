"""Jina's API: the fields for Voyage's clients, and documents as strings."""

import httpx

from rerank_service.config import ModelConfig
from tests.unit.http.dialects.forms import TEXTS, ask, serving


async def test_a_path_can_return_documents_as_strings(model: ModelConfig) -> None:
    async with serving(model, paths={"/v1/rerank": {"documents": "string"}}) as client:
        for changes in ({}, {"documents": [{"text": text, "id": 1} for text in TEXTS]}):
            places_ = (await ask(client, "jina", **changes)).json()["results"]
            assert all(place["document"] == TEXTS[place["index"]] for place in places_)
        v2 = (await ask(client, "cohere v2")).json()["results"]
    assert all(place["document"] == {"text": TEXTS[place["index"]]} for place in v2)


async def test_an_answer_has_voyages_data_unless_a_field_rules_voyage_out(client: httpx.AsyncClient) -> None:
    answer = (await ask(client, "jina")).json()
    scores = [{key: place[key] for key in ("index", "relevance_score")} for place in answer["results"]]
    assert answer["data"] == scores
    assert "data" not in (await ask(client, "jina", top_n=2)).json()
