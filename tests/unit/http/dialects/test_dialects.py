"""Other vendors' APIs over plain HTTP: requests, answers, errors, defaults, and how a shared path is resolved."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from rerank_service.config import DialectName, ModelConfig
from rerank_service.errors import ConfigError, NonFiniteLogit, QueueFull, ReplicaUnavailable, RequestTooLarge, dotted
from rerank_service.http.dialects import routes_of
from rerank_service.http.dialects.call import probability
from rerank_service.messages import Shard, ShardScores
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import local_model

QUERY = "how can I open a door?"
TEXTS = ["Push the handle", "Ask for help", "Shout at it"]
LONG = "long " * 200
MODEL = "nvidia/llama-3.2-rerank"
WINDOW_TOKENS = 64

DOCUMENTS: dict[str, Any] = {"query": QUERY, "documents": TEXTS}
TEI: dict[str, Any] = {"query": QUERY, "texts": TEXTS}
VOYAGE = DOCUMENTS | {"truncation": True}
INFINITY = DOCUMENTS | {"raw_scores": False}
COHERE_V1 = DOCUMENTS | {"max_chunks_per_doc": 1}
VLLM = DOCUMENTS | {"use_activation": True}

ALL_FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "jina": ("/v1/rerank", DOCUMENTS),
    "cohere v1": ("/v1/rerank", COHERE_V1),
    "cohere v2": ("/v2/rerank", DOCUMENTS | {"model": MODEL}),
    "tei": ("/rerank", TEI),
    "vllm": ("/rerank", DOCUMENTS),
    "vllm v1": ("/v1/rerank", VLLM),
    "vllm v2": ("/v2/rerank", VLLM),
    "vllm score": ("/score", {"text_1": QUERY, "text_2": TEXTS}),
    "vllm v1 score": ("/v1/score", {"queries": QUERY, "documents": TEXTS}),
    "infinity": ("/rerank", INFINITY),
    "voyage": ("/v1/rerank", VOYAGE),
}
"""For each dialect, a path and a minimal body that the path accepts."""


@pytest.fixture
def model(checkpoints: dict[str, Path]) -> ModelConfig:
    llama = local_model(checkpoints["llama_bidirec"], window_tokens=WINDOW_TOKENS)
    return llama.model_copy(update={"id": MODEL, "aliases": ("rerank-v3.5",)})


@pytest.fixture
async def client(model: ModelConfig) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(model, limits={"max_passages": 4, "max_body_bytes": 20_000}) as c:
        yield c


def serving(model: ModelConfig, replica: Any = None, **settings: Any) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    return client_of(local_api([model], {model.id: replica or LocalReplica(model)}, **settings))


async def logits_of(client: httpx.AsyncClient, texts: list[str] = TEXTS) -> list[float]:
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in texts]}
    rankings = (await client.post("/v1/ranking", json=body)).json()["rankings"]
    return [ranking["logit"] for ranking in sorted(rankings, key=lambda ranking: ranking["index"])]


async def ask(client: httpx.AsyncClient, name: str, **changes: Any) -> httpx.Response:
    path, body = ALL_FORMS[name]
    return await client.post(path, json=body | changes)


def places(answer: Any) -> list[Mapping[str, Any]]:
    """The results, whatever name their field has in the dialect."""
    if isinstance(answer, list):
        return answer
    found: list[Mapping[str, Any]] = answer.get("results") or answer["data"]
    return found


def score_of(place: Mapping[str, Any]) -> float:
    return float(place.get("relevance_score", place.get("score", math.nan)))


def scores_by_index(response: httpx.Response) -> dict[int, float]:
    return {place["index"]: score_of(place) for place in places(response.json())}


@pytest.mark.parametrize("name", ALL_FORMS)
async def test_scores_are_probabilities_in_descending_order(client: httpx.AsyncClient, name: str) -> None:
    logits = await logits_of(client)

    response = await ask(client, name)

    assert response.status_code == 200, response.text
    ranked = places(response.json())
    assert [score_of(place) for place in ranked] == pytest.approx(
        [probability(logits[place["index"]]) for place in ranked], abs=1e-6
    )
    order = [place["index"] for place in ranked]
    assert order == ([0, 1, 2] if "score" in name else sorted(range(3), key=lambda index: -logits[index]))


def test_a_probability_neither_overflows_nor_leaves_its_range() -> None:
    assert [probability(logit) for logit in (-1e4, -1.0, 0.0, 1.0, 1e4)] == pytest.approx(
        [0.0, 1 / (1 + math.e), 0.5, math.e / (1 + math.e), 1.0]
    )


SHAPES: dict[str, tuple[set[str], set[str]]] = {
    "jina": ({"id", "model", "object", "usage", "results", "data", "meta"}, {"index", "relevance_score", "document"}),
    "cohere v1": ({"id", "results", "meta"}, {"index", "relevance_score"}),
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


async def test_tei_answers_a_bare_list(client: httpx.AsyncClient) -> None:
    answer = (await ask(client, "tei")).json()
    assert isinstance(answer, list)
    assert all(set(place) == {"index", "score"} for place in answer)


async def test_usage_equals_that_of_our_own_api(client: httpx.AsyncClient) -> None:
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS]}
    num_tokens = (await client.post("/v1/ranking", json=body)).json()["usage"]["total_tokens"]
    answers = {name: (await ask(client, name)).json() for name in SHAPES}

    for name in ("jina", "vllm", "vllm score", "infinity", "voyage"):
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


async def test_top_n_of_zero_means_all_for_vllm_and_is_refused_by_cohere(client: httpx.AsyncClient) -> None:
    assert len(places((await ask(client, "vllm", top_n=0)).json())) == 3
    assert (await ask(client, "cohere v2", top_n=0)).status_code == 400


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


async def test_infinitys_name_for_the_default_model(client: httpx.AsyncClient) -> None:
    response = await client.post("/rerank", json=DOCUMENTS | {"model": "default/not-specified"})
    assert response.json()["object"] == "rerank"


UNKNOWN = (
    "Unknown model 'nope'; this service has: nvidia/llama-3.2-rerank, rerank-v3.5. "
    "Send one of these names, or add the name to models[].aliases"
)
UNKNOWN_MODEL: dict[str, Any] = {
    "jina": {"detail": UNKNOWN, "message": UNKNOWN},
    "cohere v1": {"detail": UNKNOWN, "message": UNKNOWN},
    "cohere v2": {"message": UNKNOWN},
    "tei": {"error": UNKNOWN, "error_type": "Validation"},  # only the form: text-embeddings-inference ignores the model
    "vllm": {"error": {"message": UNKNOWN, "type": "NotFoundError", "param": "model", "code": 404}},
    "vllm score": {"error": {"message": UNKNOWN, "type": "NotFoundError", "param": "model", "code": 404}},
    "infinity": {"error": {"message": UNKNOWN, "type": "not_found_error", "param": None, "code": 404}},
    "voyage": {"detail": UNKNOWN},
}


@pytest.mark.parametrize("name", sorted(UNKNOWN_MODEL.keys() - {"tei"}))
async def test_an_unknown_model_is_404_in_the_vendors_form(client: httpx.AsyncClient, name: str) -> None:
    response = await ask(client, name, model="nope")
    assert (response.status_code, response.json()) == (404, UNKNOWN_MODEL[name])


def message_of(answer: Any) -> str:
    """The error message, from the dialect's own field."""
    error = answer.get("error")
    nested = error["message"] if isinstance(error, dict) else error
    return str(answer.get("message") or nested or answer["detail"])


WRONG: list[tuple[str, dict[str, Any], int, str]] = [
    ("jina", {"query": ...}, 422, "query is required"),
    ("jina", {"documents": []}, 422, "documents is empty; send at least one text"),
    ("jina", {"max_doc_length": 0}, 422, "max_doc_length must be greater than or equal to 1"),
    ("jina", {"documents": ["a"] * 5}, 422, "documents has 5 entries; at most 4 are allowed, so split the request"),
    ("cohere v2", {"query": " \n"}, 400, "query is blank; send a text"),
    ("cohere v2", {"documents": ["a", 5]}, 400, 'documents[1] must be a string or {"text": "..."}'),
    ("cohere v1", {"max_chunks_per_doc": 0}, 400, "max_chunks_per_doc must be greater than or equal to 1"),
    ("cohere v1", {"documents": [{"title": "a"}]}, 400, "documents[0] must be a string, or an object with text "
     "in the fields: text"),
    ("cohere v1", {"documents": [5]}, 400, "documents has an entry that is neither a string nor an object"),
    ("tei", {"texts": []}, 400, "texts is empty; send at least one text"),
    ("tei", {"query": 5}, 422, "query must be a valid string"),
    ("tei", {"texts": ["a"] * 5}, 413, "texts has 5 entries; at most 4 are allowed, so split the request"),
    ("tei", {"truncation_direction": "Up"}, 422, "truncation_direction must be Left or Right"),
    ("cohere v2", {"priority": 1000}, 400, "priority must be less than or equal to 999"),
    ("cohere v2", {"priority": -1}, 400, "priority must be greater than or equal to 0"),
    ("cohere v2", {"model": ...}, 400, "model is required, unless service.default_model is configured"),
    ("infinity", {"top_n": 0}, 422, "top_n must be greater than or equal to 1"),
    ("infinity", {"top_n": -1}, 422, "top_n must be greater than or equal to 1"),
    ("vllm", {"top_n": -1}, 400, "top_n must be greater than or equal to 0"),
    ("vllm", {"truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens must be -1 or at least 1"),
    ("vllm", {"truncate_prompt_tokens": -2}, 400, "truncate_prompt_tokens must be greater than or equal to -1"),
    ("jina", {"documents": [{"image": "https://a/b.png"}]}, 422, "documents[0] is an image; this service ranks only "
     "text"),
    ("vllm", {"documents": [{"content": [{"type": "image_url", "image_url": {"url": "a"}}]}]}, 400,
     "documents[0] has a content part of image_url; this service ranks only text parts"),
    ("cohere v1", {"documents": [{"content": [{"type": ["my secret"]}]}]}, 400,
     "documents[0] has a content part of no known type; this service ranks only text parts"),
    ("vllm score", {"text_2": ...}, 400, "The body needs queries and texts in exactly one of these pairs of fields: "
     "text_1 with text_2, queries with documents, queries with items, data_1 with data_2"),
    ("vllm score", {"text_1": ["a", "b"]}, 400, "text_1 has 2 entries, and text_2 has 3; send one query, "
     "or one query for each text"),
    ("infinity", {"documents": 5}, 422, "documents must be a list"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "status", "message"), WRONG)
async def test_invalid_fields_are_named(
    client: httpx.AsyncClient, name: str, changes: dict[str, Any], status: int, message: str
) -> None:
    path, body = ALL_FORMS[name]
    body = {key: value for key, value in (body | changes).items() if value is not ...}

    response = await client.post(path, json=body)

    assert (response.status_code, message_of(response.json())) == (status, message)
    assert set(response.json()) >= set(UNKNOWN_MODEL[name])


async def test_infinity_adds_the_problems_in_fastapis_form(client: httpx.AsyncClient) -> None:
    answer = (await ask(client, "infinity", query=5)).json()
    assert answer["detail"] == [
        {"loc": ["body", "query"], "msg": "query must be a valid string", "type": "string_type"}
    ]


@pytest.mark.parametrize("name", ALL_FORMS)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"[" * 5000, b'{"query": "\\ud800"}', b'{"query": "\xe9"}']
)
async def test_a_body_that_is_not_a_json_object_is_refused(
    client: httpx.AsyncClient, name: str, content: bytes
) -> None:
    path, _ = ALL_FORMS[name]
    response = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert message_of(response.json())


@pytest.mark.parametrize("name", ALL_FORMS)
async def test_errors_do_not_repeat_the_users_text(client: httpx.AsyncClient, name: str) -> None:
    path, body = ALL_FORMS[name]
    spoiled = {key: {"my secret": ["my secret"]} if key != "documents" else ["my secret", 5] for key in body}
    response = await client.post(path, json=spoiled)
    assert response.status_code in (400, 422)
    assert "my secret" not in response.text


TRUNCATING = ["jina", "cohere v1", "cohere v2", "tei", "infinity", "voyage"]
REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("tei", {"texts": ["short", LONG], "truncate": False}, 413, "(query with texts[1]); shorten the input, or send "
     "truncate: true"),
    ("voyage", {"documents": ["short", LONG], "truncation": False}, 400, "or send truncation: true"),
    ("jina", {"documents": ["short", LONG], "truncation": False, "top_n": 1}, 400, "(query with documents[1]); shorten "
     "the input, or send truncation: true"),
    ("vllm", {"documents": ["short", LONG]}, 400, "(query with documents[1]); shorten the input, or send "
     "truncate_prompt_tokens: -1"),
    ("vllm score", {"text_1": ["a", "b"], "text_2": ["short", LONG]}, 400, "(text_1[1] with text_2[1])"),
    ("tei", {"query": LONG, "truncate": False}, 413, "(query with the model's prompt"),
    ("voyage", {"query": LONG, "truncation": False}, 400, "(query with the model's prompt"),
    ("vllm score", {"text_1": ["a", LONG], "text_2": ["a", "b"]}, 400, "(text_1[1] with the model's prompt"),
]  # fmt: skip


@pytest.mark.parametrize("name", TRUNCATING)
async def test_long_documents_are_truncated_by_default(client: httpx.AsyncClient, name: str) -> None:
    field = "texts" if name == "tei" else "documents"
    assert (await ask(client, name, **{field: ["short", LONG]})).status_code == 200


@pytest.mark.parametrize(("name", "changes", "status", "message"), REFUSED)
async def test_the_refusal_of_a_long_text_names_the_field_to_change(
    client: httpx.AsyncClient, name: str, changes: dict[str, Any], status: int, message: str
) -> None:
    response = await ask(client, name, **changes)

    assert response.status_code == status
    assert f"exceeds maximum allowed token size {WINDOW_TOKENS}" in message_of(response.json())
    assert message in message_of(response.json())


async def test_vllm_truncates_a_long_document_on_request(client: httpx.AsyncClient) -> None:
    assert (await ask(client, "vllm", documents=[LONG], truncate_prompt_tokens=-1)).status_code == 200


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("jina", "max_doc_length"),
        *((name, "max_tokens_per_doc") for name in ("jina", "cohere v1", "cohere v2", "vllm")),
    ],
)
async def test_a_document_is_truncated_to_its_own_limit(client: httpx.AsyncClient, name: str, field: str) -> None:
    words = "one two three four five six seven eight nine ten"
    path, body = ALL_FORMS[name]

    cut = (await client.post(path, json=body | {"documents": [words], field: 4})).json()
    whole = (await client.post(path, json=body | {"documents": [words], field: 400})).json()

    assert score_of(places(whole)[0]) == pytest.approx(probability((await logits_of(client, [words]))[0]), abs=1e-6)
    assert score_of(places(cut)[0]) != score_of(places(whole)[0])


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

    assert score_of(places(in_windows)[0]) == pytest.approx(probability(best["logit"]), abs=1e-9)
    assert score_of(places(cut)[0]) == pytest.approx(probability((await logits_of(client, [LONG]))[0]), abs=1e-9)
    assert in_windows["meta"]["tokens"]["input_tokens"] == expected["usage"]["total_tokens"]
    assert in_windows["meta"]["tokens"]["input_tokens"] > 2 * cut["meta"]["tokens"]["input_tokens"]


async def test_the_services_limit_of_windows_applies_to_cohere(model: ModelConfig) -> None:
    api = local_api([model], {model.id: LocalReplica(model)}, limits={"max_windows_per_passage": 1})
    async with client_of(api) as client:
        for name, wish in (("cohere v1", {"max_chunks_per_doc": 10}), ("cohere v2", {"max_tokens_per_doc": 4096})):
            assert (await ask(client, name, documents=[LONG], **wish)).json()["results"] == (
                await ask(client, name, documents=[LONG])
            ).json()["results"]


async def test_objects_with_text_are_documents(client: httpx.AsyncClient) -> None:
    objects = [{"text": text, "id": 7} for text in TEXTS]
    parts = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    for name in ("jina", "cohere v1", "cohere v2", "vllm", "infinity", "voyage", "tei"):
        plain = scores_by_index(await ask(client, name))
        for documents in (objects, parts):
            field = "texts" if name == "tei" else "documents"
            assert scores_by_index(await ask(client, name, **{field: documents})) == plain


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


async def test_pairs_of_several_queries_keep_their_indices(client: httpx.AsyncClient) -> None:
    queries = ["which way?", QUERY, "which way?"]
    alone = [
        (await client.post("/score", json={"text_1": query, "text_2": text})).json()["data"][0]["score"]
        for query, text in zip(queries, TEXTS, strict=True)
    ]

    answer = (await client.post("/score", json={"queries": queries, "items": TEXTS})).json()

    assert [place["score"] for place in answer["data"]] == pytest.approx(alone, abs=1e-6)
    assert [place["index"] for place in answer["data"]] == [0, 1, 2]
    assert answer["usage"]["total_tokens"] > 0


async def test_vllm_accepts_a_single_document(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS[0]})).json()
    assert [place["document"] for place in answer["results"]] == [{"text": TEXTS[0]}]


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


async def test_null_means_absent_in_nvidias_api(client: httpx.AsyncClient) -> None:
    body = {"query": {"text": QUERY}, "passages": [{"text": LONG}], "passage_windows": {}}
    windows = dict.fromkeys(("max_per_passage", "tokens", "overlap_tokens"))
    nulls = body | {"model": None, "truncate": None, "explain": None, "passage_windows": windows}

    answers = [(await client.post("/v1/ranking", json=one)).json() for one in (body, nulls)]

    assert answers[0] == answers[1]


async def test_a_required_field_that_is_null_is_missing(client: httpx.AsyncClient) -> None:
    response = await ask(client, "cohere v2", query=None)
    assert (response.status_code, response.json()["message"]) == (400, "query is required")


async def test_the_order_of_dialects_decides_if_the_body_matches_several(model: ModelConfig) -> None:
    async with serving(model, dialects=["cohere", "infinity", "vllm", "jina"]) as client:
        assert set((await client.post("/v1/rerank", json=DOCUMENTS)).json()) == {"id", "results", "meta"}
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


@pytest.mark.parametrize("name", ["jina", "cohere v1", "cohere v2"])
async def test_documents_come_back_as_they_were_sent(client: httpx.AsyncClient, name: str) -> None:
    documents = [{"text": text, "title": None, "id": 7, "deep": [[{"a": [1.5, True]}]]} for text in TEXTS]
    documents[1] = TEXTS[1]  # type: ignore[call-overload]

    answer = (await ask(client, name, documents=documents, return_documents=True)).json()

    sent = [documents[0], {"text": TEXTS[1]}, documents[2]]
    assert all(place["document"] == sent[place["index"]] for place in answer["results"])
    without = (await ask(client, name, documents=documents, return_documents=False)).json()
    assert all("document" not in place for place in without["results"])


async def test_tei_ignores_the_model(client: httpx.AsyncClient) -> None:
    for path in ("/rerank", "/v1/rerank"):
        response = await client.post(path, json=TEI | {"model": "nope"})
        assert (response.status_code, response.headers["x-model"]) == (200, MODEL)
        assert scores_by_index(response) == scores_by_index(await ask(client, "tei"))


async def test_cohere_v2_needs_no_model_if_a_default_is_configured(model: ModelConfig) -> None:
    async with serving(model, service={"default_model": MODEL}) as client:
        assert (await client.post("/v2/rerank", json=DOCUMENTS)).status_code == 200


async def test_left_truncation_keeps_the_end(client: httpx.AsyncClient) -> None:
    text = "first " * 100 + TEXTS[0]
    requests: list[tuple[str, dict[str, Any]]] = [
        ("tei", {"texts": [text], "truncation_direction": "Left", "raw_scores": True}),
        ("tei", {"texts": [text], "truncation_direction": "Right", "raw_scores": True}),
        ("tei", {"texts": ["first " * 100], "raw_scores": True}),
    ]
    left, right, same = [await ask(client, name, **changes) for name, changes in requests]

    assert left.headers["x-rerank-truncated-passages"] == "1"
    assert scores_by_index(right) == scores_by_index(same)
    assert scores_by_index(left) != scores_by_index(right)
    short = {"texts": TEXTS, "truncation_direction": "left"}
    assert scores_by_index(await ask(client, "tei", **short)) == scores_by_index(await ask(client, "tei"))


async def test_vllm_truncates_the_document_to_the_prompts_tokens(client: httpx.AsyncClient) -> None:
    async def answer(**changes: Any) -> httpx.Response:
        response = await ask(client, "vllm", **changes)
        assert response.status_code == 200, response.text
        return response

    words = "one two three four five six seven eight nine ten"
    whole = await answer(documents=[words])
    num_tokens = whole.json()["usage"]["total_tokens"]
    exact = await answer(documents=[words], truncate_prompt_tokens=num_tokens)
    cut = await answer(documents=[words], truncate_prompt_tokens=num_tokens - 3)
    num_own = num_tokens - (await answer(documents=[""])).json()["usage"]["total_tokens"]
    start = await answer(documents=[words], max_tokens_per_doc=num_own - 3)
    left = await answer(documents=[words], truncate_prompt_tokens=num_tokens - 3, truncation_side="left")
    tiny = await answer(documents=[words], truncate_prompt_tokens=1)

    assert scores_by_index(exact) == scores_by_index(whole)
    assert scores_by_index(cut) == scores_by_index(start) != scores_by_index(left)
    assert [one.headers["x-rerank-truncated-passages"] for one in (whole, exact, cut, left, tiny)] == list("00111")
    assert cut.json()["usage"]["total_tokens"] == num_tokens - 3
    assert tiny.json()["usage"]["total_tokens"] == num_tokens - num_own + 1
    huge = await answer(documents=[LONG], truncate_prompt_tokens=5000)
    assert huge.json()["usage"]["total_tokens"] == WINDOW_TOKENS


@pytest.mark.parametrize("name", ALL_FORMS)
@pytest.mark.parametrize("truncate", ["END", "NONE"])
async def test_the_configuration_decides_what_happens_to_long_texts(
    model: ModelConfig, name: str, truncate: str
) -> None:
    path, _ = ALL_FORMS[name]
    field = {"tei": "texts", "vllm score": "text_2"}.get(name, "documents")
    silent = {"truncation": None, "truncate": None}
    settings: list[dict[str, Any]] = [
        {"limits": {"truncate": truncate}},
        {"limits": {"truncate": "NONE"}, "paths": {path: {"truncate": truncate}}},
    ]
    for one in settings:
        async with serving(model, **one) as client:
            changes = silent | {field: ["short", LONG, "short"], "top_k": 3 if name == "voyage" else None}
            response = await ask(client, name, **changes)
        assert (response.status_code == 200) == (truncate == "END"), response.text
        if truncate == "NONE":
            assert "exceeds maximum allowed token size" in message_of(response.json())
            assert not message_of(response.json()).endswith("send ")


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


LIMITS: list[tuple[dict[str, Any], int, int]] = [
    ({}, 512, 1000),
    ({"limits": {"max_passages": 5}}, 5, 5),
    ({"limits": {"max_documents": 7}}, 512, 7),
    ({"rate_limits": {"passages_per_minute": 600}}, 512, 600),
]


@pytest.mark.parametrize(("settings", "passages", "documents"), LIMITS)
async def test_each_api_has_its_limit_of_passages(
    model: ModelConfig, settings: dict[str, Any], passages: int, documents: int
) -> None:
    async with serving(model, **settings) as client:
        own = {"query": {"text": "q"}, "passages": [{"text": "p"}] * (passages + 1)}
        answers = [await client.post("/v1/ranking", json=own)]
        answers.append(await ask(client, "cohere v2", documents=["p"] * (documents + 1)))
    assert [answer.status_code for answer in answers] == [400, 400]
    assert f"at most {passages} are allowed" in answers[0].json()["message"]
    assert f"at most {documents} are allowed" in answers[1].json()["message"]


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


@pytest.mark.parametrize("name", ALL_FORMS)
async def test_every_dialect_requires_the_key(model: ModelConfig, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "nvapi-secret")
    path, body = ALL_FORMS[name]
    async with serving(model) as client:
        missing = await client.post(path, json=body)
        right = await client.post(path, json=body, headers={"authorization": "Bearer nvapi-secret"})

    assert (missing.status_code, missing.headers["www-authenticate"], right.status_code) == (401, "Bearer", 200)
    assert message_of(missing.json()).startswith("Missing API key")


async def test_rate_limits_count_every_dialects_passages(model: ModelConfig) -> None:
    async with serving(model, rate_limits={"passages_per_minute": 5}, limits={"max_passages": 5}) as client:
        first, second = await ask(client, "cohere v2"), await ask(client, "tei")

    assert first.headers["x-ratelimit-remaining-passages"] == "2"
    assert (second.status_code, second.json()["error_type"]) == (429, "Overloaded")
    assert int(second.headers["retry-after"]) > 0


class Failing:
    """A replica that fails with a given error."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def remote(self, _: Any) -> "asyncio.Task[None]":
        async def score() -> None:
            raise self._error

        return asyncio.ensure_future(score())


FAILURES: list[tuple[str, Callable[[], Exception], int, str | None]] = [
    ("cohere v2", lambda: QueueFull(10, 9), 503, "1"),
    ("vllm", lambda: QueueFull(10, 9), 503, "1"),
    ("tei", lambda: QueueFull(10, 9), 429, "1"),
    ("tei", lambda: ReplicaUnavailable("m"), 503, "1"),
    ("tei", lambda: NonFiniteLogit(1), 424, None),
    ("voyage", lambda: NonFiniteLogit(1), 500, None),
    ("infinity", lambda: ZeroDivisionError("my secret"), 500, None),
]


@pytest.mark.parametrize(("name", "error", "status", "retry_after"), FAILURES)
async def test_failures_have_the_vendors_status(
    model: ModelConfig, name: str, error: Callable[[], Exception], status: int, retry_after: str | None
) -> None:
    async with serving(model, Failing(error())) as client:
        response = await ask(client, name)
        metrics = (await client.get("/metrics")).text

    assert (response.status_code, response.headers.get("retry-after")) == (status, retry_after)
    assert set(response.json()) == set(UNKNOWN_MODEL[name])
    assert "secret" not in response.text
    assert f'dialect="{name.split()[0]}"' in metrics
    assert f'status="{status}"' in metrics


async def test_a_wrong_timeout_header_is_refused_in_the_dialects_form(client: httpx.AsyncClient) -> None:
    path, body = ALL_FORMS["cohere v2"]
    response = await client.post(path, json=body, headers={"x-request-timeout-seconds": "never"})
    assert response.status_code == 400
    assert "positive number of seconds" in response.json()["message"]


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


def test_every_dialect_has_its_paths() -> None:
    spoken = {path: [dialect.name for dialect in dialects] for path, dialects in routes_of(list(DialectName)).items()}
    assert spoken == {
        "/v1/rerank": ["jina", "cohere", "vllm", "tei", "voyage"],
        "/v2/rerank": ["cohere", "vllm"],
        "/rerank": ["vllm", "infinity", "tei"],
        "/score": ["vllm"],
        "/v1/score": ["vllm"],
    }


async def test_all_queries_of_a_request_share_one_request_id(model: ModelConfig) -> None:
    replica, seen = LocalReplica(model), set()

    class Watching:
        def remote(self, shard: Any) -> Any:
            seen.add((shard.query, shard.request_id))
            return replica.remote(shard)

    async with serving(model, Watching()) as client:
        await client.post("/score", json={"text_1": ["a", "b"], "text_2": ["c", "d"]})

    of_the_request = {query: request_id for query, request_id in seen if query in ("a", "b")}
    assert set(of_the_request) == {"a", "b"}
    assert len(set(of_the_request.values())) == 1


async def test_a_failed_query_cancels_the_others_and_its_error_is_the_answer(model: ModelConfig) -> None:
    class FailingOnce:
        """Fails for the query `a` once the query `b` has arrived, and never answers `b`."""

        def __init__(self) -> None:
            self.has_arrived = asyncio.Event()
            self.pending: asyncio.Future[ShardScores] = asyncio.get_running_loop().create_future()

        def remote(self, shard: Shard) -> "asyncio.Future[ShardScores]":
            if shard.query == "b":
                self.has_arrived.set()
                return self.pending
            return asyncio.ensure_future(self.fail())

        async def fail(self) -> ShardScores:
            await self.has_arrived.wait()
            raise QueueFull(10, 9)

    replica = FailingOnce()
    async with serving(model, replica) as client:
        response = await client.post("/score", json={"text_1": ["a", "b"], "text_2": ["c", "d"]})

    assert (response.status_code, response.json()["error"]["code"]) == (503, 503)
    assert replica.pending.cancelled()


LOSS_BODIES: dict[str, tuple[str, dict[str, Any]]] = ALL_FORMS | {
    "nim": ("/v1/ranking", {"query": {"text": QUERY}, "passages": [{"text": text} for text in [*TEXTS, TEXTS[0]]]}),
    "vllm score of several queries": ("/score", {"queries": ["a", "b", "a"], "documents": TEXTS}),
}


class _Truncating:
    """Truncates passages that begin with A, and scores no token of passages that begin with P."""

    def remote(self, shard: Shard) -> "asyncio.Task[ShardScores]":
        unscored = tuple(text.startswith("P") for text in shard.passages)
        cut = tuple(text[0] in "PA" for text in shard.passages)
        count = len(shard.passages)
        scores = ShardScores((1.0,) * count, (9,) * count, cut, unscored, 0.0, 0.0, 0.0)

        async def score() -> ShardScores:
            return scores

        return asyncio.ensure_future(score())


@pytest.mark.parametrize("name", LOSS_BODIES)
async def test_every_answer_counts_truncated_and_unscored_passages(model: ModelConfig, name: str) -> None:
    path, body = LOSS_BODIES[name]
    async with serving(model, _Truncating()) as client:
        response = await client.post(path, json=body)
        metrics = (await client.get("/metrics")).text

    num_copies = 2 if name == "nim" else 1  # a repeated passage is scored once, but counted each time
    assert response.status_code == 200
    assert response.headers["x-rerank-truncated-passages"] == str(num_copies + 1)
    assert response.headers["x-rerank-unscored-passages"] == str(num_copies)
    assert f'rerank_unscored_pairs_total{{model="{MODEL}"}} {num_copies}.0' in metrics
    assert f'rerank_truncated_pairs_total{{model="{MODEL}"}} {num_copies + 1}.0' in metrics


@pytest.mark.parametrize("name", LOSS_BODIES)
async def test_the_counts_are_zero_if_everything_fits(client: httpx.AsyncClient, name: str) -> None:
    path, body = LOSS_BODIES[name]
    headers = (await client.post(path, json=body)).headers
    assert [headers[f"x-rerank-{what}-passages"] for what in ("truncated", "unscored")] == ["0", "0"]


async def test_openapi_describes_the_counts_on_every_ranking_route(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    ranking = [operation["post"] for operation in paths.values() if "post" in operation]
    assert len(ranking) == 3 + len({path for path, _ in ALL_FORMS.values()})
    for operation in ranking:
        headers = operation["responses"]["200"]["headers"]
        counts = {"x-rerank-truncated-passages", "x-rerank-unscored-passages"}
        assert set(headers) == counts | {"x-ignored-fields", "x-model"}
        assert all(headers[name]["schema"] == {"type": "integer", "minimum": 0} for name in counts)


class _TooLarge:
    """Refuses every request as too large."""

    def remote(self, shard: Shard) -> "asyncio.Task[ShardScores]":
        async def refuse() -> ShardScores:
            raise RequestTooLarge(shard.request_tokens, 10)

        return asyncio.ensure_future(refuse())


LONG_AT_ONE = ["short", LONG]
NAMED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}, {"text": LONG}], "truncate": "NONE"},
     "query.text with passages[1].text"),
    ("/rerank", {"query": "q", "texts": LONG_AT_ONE, "truncate": False}, "query with texts[1]"),
    ("/v1/rerank", {"query": "q", "documents": LONG_AT_ONE, "truncation": False}, "query with documents[1]"),
    ("/rerank", {"query": "q", "documents": LONG_AT_ONE}, "query with documents[1]"),
    ("/rerank", {"query": "q", "documents": LONG}, "query with documents"),
    ("/score", {"text_1": "q", "text_2": LONG_AT_ONE}, "text_1 with text_2[1]"),
    ("/score", {"text_1": "q", "text_2": LONG}, "text_1 with text_2"),
    ("/score", {"text_1": ["q"], "text_2": LONG_AT_ONE}, "text_1[0] with text_2[1]"),
    ("/v1/score", {"queries": ["a", "b", "a"], "documents": ["x", "y", LONG]}, "queries[2] with documents[2]"),
    ("/v1/score", {"queries": ["a"], "items": [{"text": "x"}, {"text": LONG}]}, "queries[0] with items[1]"),
    ("/v1/score", {"data_1": "q", "data_2": LONG_AT_ONE}, "data_1 with data_2[1]"),
    ("/score", {"text_1": "q", "text_2": ["a", 5]}, "text_2[1]"),
    ("/score", {"text_1": "q", "text_2": 5}, "text_2"),
    ("/score", {"text_1": " ", "text_2": "a"}, "text_1"),
    ("/score", {"text_1": ["a", " "], "text_2": ["a", "b"]}, "text_1[1]"),
    ("/score", {"text_1": 5, "text_2": "a"}, "text_1"),
    ("/rerank", {"query": "q", "documents": 5, "use_activation": True}, "documents"),
    ("/v1/rerank", {"query": "q", "documents": ["a", 5]}, "documents[1]"),
    ("/v1/rerank", {"query": {"text": " "}, "documents": ["a"]}, "query"),
    ("/v2/rerank", {"model": MODEL, "query": "q", "documents": ["a"] * 5}, "documents"),
    ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}] * 5}, "passages"),
    ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": 5}]}, "passages[0].text"),
]  # fmt: skip
FIELDS_OF_TEXTS = r"quer(?:y|ies)|passages|documents|texts|items|text_[12]|data_[12]"


def assert_places_exist(body: dict[str, Any], message: str) -> None:
    """Checks that every text field named in the message exists in the body, with its whole path."""
    named = re.findall(rf"\b(?:{FIELDS_OF_TEXTS})(?![\w/])(?:\[\d+\]|\.text\b)*", message)
    for place in named:
        value: Any = body
        for part in re.findall(r"\w+", place):
            value = value[int(part)] if isinstance(value, list) else value[part]


def places_named(answer: Any) -> list[str]:
    """Machine-readable paths in the error, if the dialect has such paths."""
    error, detail = answer.get("error"), answer.get("detail")
    params = [error["param"]] if isinstance(error, dict) and error["param"] else []
    return params + [dotted(tuple(one["loc"][1:])) for one in (detail if isinstance(detail, list) else [])]


@pytest.mark.parametrize(("path", "body", "place"), NAMED)
async def test_an_error_names_the_fields_of_the_callers_body(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], place: str
) -> None:
    answer = (await client.post(path, json=body)).json()

    message = message_of(answer)
    assert re.search(rf"(?<![\w.]){re.escape(place)}(?![\w.\[])", message), message
    assert_places_exist(body, message)
    assert set(places_named(answer)) <= {place.split(" with ")[-1]}


@pytest.mark.parametrize("name", LOSS_BODIES)
async def test_the_error_for_a_too_large_request_names_the_callers_field(model: ModelConfig, name: str) -> None:
    path, body = LOSS_BODIES[name]
    async with serving(model, _TooLarge()) as client:
        answer = (await client.post(path, json=body)).json()

    assert_places_exist(body, message_of(answer))
    assert set(places_named(answer)) <= set(body)


async def test_vllms_param_is_null_for_a_header(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/score", json={}, headers={"x-request-timeout-seconds": "soon"})).json()
    assert "x-request-timeout-seconds" in answer["error"]["message"]
    assert answer["error"]["param"] is None


async def test_replicas_receive_the_caller_but_never_the_key(
    model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "first-key,second-key")
    replica, callers = LocalReplica(model), list[str]()

    class Watching:
        def remote(self, shard: Any) -> Any:
            callers.append(shard.caller)
            return replica.remote(shard)

    async with serving(model, Watching()) as client:
        for key in ("first-key", "second-key", "first-key"):
            body = {"query": {"text": QUERY}, "passages": [{"text": "a"}]}
            await client.post("/v1/ranking", json=body, headers={"authorization": f"Bearer {key}"})

    first, second, again = (caller for caller in callers if caller)  # readiness's own pair has no caller
    assert first == again != second
    assert not any("key" in caller for caller in callers)
