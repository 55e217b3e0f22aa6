"""Answers of all APIs: scores, order, fields, documents and the OpenAPI document."""

import math
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from rerank_service.config import sigmoid
from tests.unit.http.dialects.forms import (
    ALL_FORMS,
    MODEL,
    QUERY,
    TEXTS,
    ask,
    logits_of,
    places,
    score_of,
    scores_by_index,
)


@pytest.mark.parametrize("name", ALL_FORMS)
async def test_scores_are_probabilities_in_descending_order(client: httpx.AsyncClient, name: str) -> None:
    logits = await logits_of(client)

    response = await ask(client, name)

    assert response.status_code == 200, response.text
    ranked = places(response.json())
    assert [score_of(place) for place in ranked] == pytest.approx(
        [sigmoid(logits[place["index"]]) for place in ranked], abs=1e-6
    )
    order = [place["index"] for place in ranked]
    assert order == ([0, 1, 2] if "score" in name else sorted(range(3), key=lambda index: -logits[index]))


def test_a_probability_neither_overflows_nor_leaves_its_range() -> None:
    assert [sigmoid(logit) for logit in (-1e4, -1.0, 0.0, 1.0, 1e4)] == pytest.approx(
        [0.0, 1 / (1 + math.e), 0.5, math.e / (1 + math.e), 1.0]
    )


SHAPES: dict[str, tuple[set[str], set[str]]] = {
    "jina": ({"id", "model", "object", "usage", "results", "data", "meta"}, {"index", "relevance_score", "document"}),
    "cohere v1": ({"id", "results", "meta", "model", "usage", "object"}, {"index", "relevance_score"}),
    "cohere v2": ({"id", "results", "meta", "model", "usage"}, {"index", "relevance_score", "document"}),
    "vllm": ({"id", "model", "usage", "results"}, {"index", "document", "relevance_score"}),
    "vllm score": ({"id", "object", "created", "model", "data", "usage"}, {"index", "object", "score"}),
    "infinity": ({"object", "results", "model", "usage", "id", "created"}, {"index", "relevance_score"}),
    "voyage": ({"object", "data", "results", "model", "usage"}, {"index", "relevance_score"}),
}


@pytest.mark.parametrize("name", SHAPES)
async def test_an_answer_has_the_vendors_keys(client: httpx.AsyncClient, name: str) -> None:
    answer = (await ask(client, name)).json()
    keys, result_keys = SHAPES[name]
    assert set(answer) == keys
    assert all(set(place) == result_keys for place in places(answer))


async def test_usage_equals_that_of_our_own_api(client: httpx.AsyncClient) -> None:
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS]}
    num_tokens = (await client.post("/v1/ranking", json=body)).json()["usage"]["total_tokens"]
    answers = {name: (await ask(client, name)).json() for name in SHAPES}

    for name in ("jina", "cohere v1", "cohere v2", "vllm", "vllm score", "infinity", "voyage"):
        assert answers[name]["usage"]["total_tokens"] == num_tokens
    for name in ("jina", "cohere v1", "cohere v2"):
        assert answers[name]["meta"]["tokens"]["input_tokens"] == num_tokens
        assert answers[name]["meta"]["billed_units"] == {"search_units": 1}
    assert answers["cohere v2"]["meta"]["api_version"]["version"] == "2"


@pytest.mark.parametrize(
    ("name", "changes", "document"),
    [
        ("jina", {}, {"text": "{}"}),
        ("jina", {"return_documents": True}, {"text": "{}"}),
        ("cohere v1", {"return_documents": True}, {"text": "{}"}),
        ("cohere v2", {}, {"text": "{}"}),
        ("cohere v2", {"return_documents": True}, {"text": "{}"}),
        ("vllm", {}, {"text": "{}"}),
        ("infinity", {"return_documents": True}, "{}"),
        ("voyage", {"return_documents": True}, "{}"),
        ("tei", {"return_text": True}, "{}"),
    ],
)
async def test_documents_come_back_in_the_vendors_form(
    client: httpx.AsyncClient, name: str, changes: dict[str, Any], document: Any
) -> None:
    for place in places((await ask(client, name, **changes)).json()):
        text = TEXTS[place["index"]]
        expected = {"text": text} if isinstance(document, dict) else text
        assert place.get("document", place.get("text")) == expected


@pytest.mark.parametrize("name", ALL_FORMS)
async def test_top_n_limits_the_results(client: httpx.AsyncClient, name: str) -> None:
    if "score" in name:
        return  # the dialect has no such field
    field = "top_k" if name == "voyage" else "top_n"
    everything = places((await ask(client, name)).json())

    best = places((await ask(client, name, **{field: 2})).json())

    assert [place["index"] for place in best] == [place["index"] for place in everything[:2]]
    assert len(places((await ask(client, name, **{field: 50})).json())) == 3


@pytest.mark.parametrize(
    ("name", "changes"), [("tei", {"raw_scores": True}), ("infinity", {"raw_scores": True}),
                          ("vllm", {"use_activation": False}), ("vllm score", {"use_activation": False})],
)  # fmt: skip
async def test_logits_are_returned_on_request(client: httpx.AsyncClient, name: str, changes: dict[str, Any]) -> None:
    logits = await logits_of(client)
    ranked = places((await ask(client, name, **changes)).json())
    assert [score_of(place) for place in ranked] == pytest.approx(
        [logits[place["index"]] for place in ranked], abs=1e-5
    )


@pytest.mark.parametrize("name", ALL_FORMS)
async def test_the_model_may_be_named_or_omitted(client: httpx.AsyncClient, name: str) -> None:
    scores = [score_of(place) for place in places((await ask(client, name)).json())]
    for model in (MODEL, "RERANK-v3.5") if name == "cohere v2" else (None, MODEL, "RERANK-v3.5"):
        named = places((await ask(client, name, model=model)).json())
        assert [score_of(place) for place in named] == scores


async def test_objects_with_text_are_documents(client: httpx.AsyncClient) -> None:
    objects = [{"text": text, "id": 7} for text in TEXTS]
    parts = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    for name in ("jina", "cohere v1", "cohere v2", "vllm", "infinity", "voyage", "tei"):
        plain = scores_by_index(await ask(client, name))
        for documents in (objects, parts):
            field = "texts" if name == "tei" else "documents"
            assert scores_by_index(await ask(client, name, **{field: documents})) == plain


@pytest.mark.parametrize("name", ["jina", "cohere v1", "cohere v2"])
async def test_documents_come_back_as_they_were_sent(client: httpx.AsyncClient, name: str) -> None:
    documents = [{"text": text, "title": None, "id": 7, "deep": [[{"a": [1.5, True]}]]} for text in TEXTS]
    documents[1] = TEXTS[1]  # type: ignore[call-overload]

    answer = (await ask(client, name, documents=documents, return_documents=True)).json()

    sent = [documents[0], {"text": TEXTS[1]}, documents[2]]
    assert all(place["document"] == sent[place["index"]] for place in answer["results"])
    without = (await ask(client, name, documents=documents, return_documents=False)).json()
    assert all("document" not in place for place in without["results"])


async def test_answers_and_errors_match_the_openapi_document(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    for name, (path, body) in ALL_FORMS.items():
        operation = document["paths"][path]["post"]
        for changes in ({}, {"model": "nope"}, {"query": 5, "text_1": 5, "queries": 5}):
            response = await ask(client, name, **changes)
            schema = operation["responses"][str(response.status_code)]["content"]["application/json"]["schema"]
            validator(document, schema).validate(response.json())
        validator(document, operation["requestBody"]["content"]["application/json"]["schema"]).validate(body)


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})
