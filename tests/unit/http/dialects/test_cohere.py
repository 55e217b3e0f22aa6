"""Cohere's API: windows, fields of objects, and the required model."""

import httpx
import pytest

from rerank_service.config import ModelConfig, sigmoid
from tests.local_service import LocalReplica, client_of, local_api
from tests.unit.http.dialects.forms import (
    DOCUMENTS,
    LONG,
    MODEL,
    QUERY,
    TEXTS,
    ask,
    logits_of,
    places,
    score_of,
    serving,
)


@pytest.mark.parametrize(
    ("name", "wish"), [("cohere v1", {"max_chunks_per_doc": 16}), ("cohere v2", {"max_tokens_per_doc": 4096})]
)
async def test_cohere_ranks_a_long_document_in_windows_when_asked(
    client: httpx.AsyncClient, name: str, wish: dict[str, int]
) -> None:
    body = {"query": {"text": QUERY}, "passages": [{"text": LONG}], "passage_windows": {}}
    expected = (await client.post("/v1/ranking", json=body)).json()
    (best,) = expected["rankings"]

    cut = (await ask(client, name, documents=[LONG])).json()
    in_windows = (await ask(client, name, documents=[LONG], **wish)).json()

    assert score_of(places(in_windows)[0]) == pytest.approx(sigmoid(best["logit"]), abs=1e-9)
    assert score_of(places(cut)[0]) == pytest.approx(sigmoid((await logits_of(client, [LONG]))[0]), abs=1e-9)
    assert in_windows["meta"]["tokens"]["input_tokens"] == expected["usage"]["total_tokens"]
    assert in_windows["meta"]["tokens"]["input_tokens"] > 2 * cut["meta"]["tokens"]["input_tokens"]


async def test_the_services_limit_of_windows_applies_to_cohere(model: ModelConfig) -> None:
    api = local_api([model], {model.id: LocalReplica(model)}, limits={"max_windows_per_passage": 1})
    async with client_of(api) as client:
        for name, wish in (("cohere v1", {"max_chunks_per_doc": 10}), ("cohere v2", {"max_tokens_per_doc": 4096})):
            assert (await ask(client, name, documents=[LONG], **wish)).json()["results"] == (
                await ask(client, name, documents=[LONG])
            ).json()["results"]


async def test_cohere_ranks_the_given_fields(client: httpx.AsyncClient) -> None:
    documents = [{"title": text, "body": "x", "text": "no"} for text in TEXTS]

    one = places((await ask(client, "cohere v1", documents=documents, rank_fields=["title"])).json())
    two = (
        await ask(client, "cohere v1", documents=documents, rank_fields=["title", "body"], return_documents=True)
    ).json()

    lines = [f"title: {text}\nbody: x" for text in TEXTS]
    assert one == places((await ask(client, "cohere v1")).json())
    assert all(place["document"] == documents[place["index"]] for place in two["results"])
    assert {place["index"]: place["relevance_score"] for place in two["results"]} == {
        place["index"]: place["relevance_score"]
        for place in (await ask(client, "cohere v1", documents=lines)).json()["results"]
    }


async def test_an_answer_of_cohere_v1_has_the_fields_that_togethers_clients_read(client: httpx.AsyncClient) -> None:
    """Together's API is Cohere's version 1 with a model, an object and a usage; `rank_fields` belongs to both."""
    documents = [{"title": "Paris", "body": "the capital of France"}, {"title": "Berlin", "body": "a city"}]

    answer = (await ask(client, "cohere v1", documents=documents, rank_fields=["title", "body"])).json()

    assert (answer["model"], answer["object"]) == (MODEL, "rerank")
    assert (
        answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == answer["meta"]["tokens"]["input_tokens"]
    )


async def test_a_required_field_that_is_null_is_missing(client: httpx.AsyncClient) -> None:
    response = await ask(client, "cohere v2", query=None)
    assert (response.status_code, response.json()["message"]) == (400, "query is required")


async def test_cohere_v2_needs_no_model_if_a_default_is_configured(model: ModelConfig) -> None:
    async with serving(model, service={"default_model": MODEL}) as client:
        assert (await client.post("/v2/rerank", json=DOCUMENTS)).status_code == 200
