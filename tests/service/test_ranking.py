"""Single requests: models, order, usage, truncation, errors, and the routes for health, metadata and metrics."""

import math
from typing import Any

import httpx
import pytest

from rerank_service import __version__
from rerank_service.messages import Fitting
from rerank_service.routing.ranker import cut_into_shards
from tests.service.running import (
    CLIENT_TIMEOUT_S,
    KEY,
    LLAMA,
    LOGIT_TOLERANCE,
    MINILM,
    MISTRAL,
    POOLED,
    Reference,
    Service,
    assert_error,
    assert_ranked,
    long_text,
    ranking_body,
)

QUERY = "how much protein should a female eat?"
PASSAGES = [
    "As a general guideline, the average requirement of protein for women ages 19 to 70 is 46 grams per day.",
    "Definition of summit for English Language Learners: the highest point of a mountain.",
    "Calorie intake should not fall below 1,200 a day in women or 1,500 a day in men.",
    "",
    "東京は日本の首都です。 🙂 naïve café \x00 </s>",
]
NAMES = {
    LLAMA: LLAMA,
    "nvidia/llama-nemotron-rerank-1b-v2": LLAMA,
    MISTRAL: MISTRAL,
    "nv-rerankqa-mistral-4b-v3": MISTRAL,
    "NV-RerankQA-Mistral-4B-v3": MISTRAL,
    MINILM: MINILM,
}
RANKING_ROUTES = ["/v1/ranking", "/v1/retrieval/nvidia/reranking", "/v1/retrieval/nvidia/all-MiniLM-L6-v2/reranking"]


@pytest.mark.parametrize(("name", "model_id"), NAMES.items())
def test_a_name_or_alias_reaches_its_own_model(
    client: httpx.Client, references: dict[str, Reference], name: str, model_id: str
) -> None:
    reference = references[model_id]
    body = assert_ranked(_rank(client, PASSAGES, model=name), reference.logits(QUERY, PASSAGES))
    assert body["usage"]["total_tokens"] == reference.num_tokens(QUERY, PASSAGES)


def test_the_models_differ(references: dict[str, Reference]) -> None:
    logits = [references[name].logits(QUERY, PASSAGES) for name in (LLAMA, MISTRAL, MINILM)]
    assert all(len({round(value, 3) for value in column}) == len(logits) for column in zip(*logits, strict=True))


@pytest.mark.parametrize("named", [{"model": None}, {}], ids=["null", "absent"])
def test_the_first_model_is_the_default(
    client: httpx.Client, references: dict[str, Reference], named: dict[str, None]
) -> None:
    body = {key: value for key, value in ranking_body(None, QUERY, PASSAGES).items() if key != "model"} | named
    assert_ranked(client.post("/v1/ranking", json=body), references[LLAMA].logits(QUERY, PASSAGES))


@pytest.mark.parametrize("model_id", [LLAMA, MISTRAL, MINILM])
def test_identical_passages_keep_the_order_of_the_request(client: httpx.Client, model_id: str) -> None:
    rankings = _rank(client, [PASSAGES[0], PASSAGES[1]] * 30, model=model_id).json()["rankings"]
    halves = [[ranking["index"] for ranking in rankings[start : start + 30]] for start in (0, 30)]
    assert sorted(halves) == [list(range(0, 60, 2)), list(range(1, 60, 2))]
    assert len({ranking["logit"] for ranking in rankings}) == 2


def test_a_request_with_many_shards_is_assembled_in_order(
    client: httpx.Client, service: Service, references: dict[str, Reference]
) -> None:
    passages = [f"{number} grams. {PASSAGES[number % 3]}" for number in range(512)]
    assert len(_shards(service, passages)) > 5
    reference = references[MISTRAL]
    body = assert_ranked(_rank(client, passages, model=MISTRAL), reference.logits(QUERY, passages))
    assert body["usage"]["total_tokens"] == reference.num_tokens(QUERY, passages)


@pytest.mark.parametrize("options", [{"truncate": "END"}, {"truncate": None}, {}], ids=["END", "null", "absent"])
@pytest.mark.parametrize("model_id", [LLAMA, MISTRAL, MINILM])
def test_a_long_passage_is_cut_at_the_window(
    client: httpx.Client, references: dict[str, Reference], model_id: str, options: dict[str, Any]
) -> None:
    reference, passages = references[model_id], ["short", long_text(2000)]
    body = assert_ranked(_rank(client, passages, model=model_id, **options), reference.logits(QUERY, passages))
    assert body["usage"]["total_tokens"] == reference.num_tokens(QUERY, passages)
    assert reference.window_tokens <= body["usage"]["total_tokens"] <= 2 * reference.window_tokens


@pytest.mark.parametrize("model_id", [LLAMA, MISTRAL, MINILM])
def test_truncate_none_refuses_a_long_passage_and_names_it(
    client: httpx.Client, service: Service, references: dict[str, Reference], model_id: str
) -> None:
    passages = [f"{number}. {PASSAGES[0]}" for number in range(100)]
    passages[90] = long_text(2000)
    assert 90 not in _shards(service, passages)[0].indices
    error = assert_error(_rank(client, passages, model=model_id, truncate="NONE"), 400)
    assert f"exceeds maximum allowed token size {references[model_id].window_tokens}" in error["message"]
    assert error["detail"][0]["loc"] == ["body", "passages", 90, "text"]
    assert error["type"] == "invalid_request_error"


def test_truncate_none_changes_nothing_for_short_passages(
    client: httpx.Client, references: dict[str, Reference]
) -> None:
    assert_ranked(_rank(client, PASSAGES, truncate="NONE"), references[LLAMA].logits(QUERY, PASSAGES))


def test_late_interaction_explains_a_ranking_by_its_tokens(
    client: httpx.Client, references: dict[str, Reference]
) -> None:
    passages = [f"{number}. {PASSAGES[number % 3]}" for number in range(200)]  # several shards and both replicas' work
    answer = _rank(client, passages, model=MINILM, explain={"top_n": 10})
    body = assert_ranked(answer, references[MINILM].logits(QUERY, passages))
    explanations = body["explanations"]
    assert [one["index"] for one in explanations] == [ranking["index"] for ranking in body["rankings"][:10]]
    for explanation in explanations:
        assert (explanation["method"], explanation["is_approximate"]) == ("token_alignment", False)
        (protein,) = [m for m in explanation["matches"] if QUERY[m["query"]["start"] : m["query"]["end"]] == "protein"]
        place = protein["passage"]
        assert passages[explanation["index"]][place["start"] : place["end"]] == "protein"


@pytest.mark.parametrize("model_id", [LLAMA, POOLED[0]])
def test_other_models_explain_a_ranking_by_leaving_out_sentences(
    client: httpx.Client, references: dict[str, Reference], model_id: str
) -> None:
    passages = [PASSAGES[1], f"{PASSAGES[0]} {PASSAGES[2]}"]
    answer = _rank(client, passages, model=model_id, explain={"top_n": 2})
    body = assert_ranked(answer, references[model_id].logits(QUERY, passages))
    by_index = {one["index"]: one for one in body["explanations"]}
    assert {one["method"] for one in body["explanations"]} == {"leave_one_sentence_out"}
    assert by_index[0]["sentences"] == [{"start": 0, "end": len(PASSAGES[1]), "contribution": None}]
    whole, first, second = references[model_id].logits(QUERY, [passages[1], PASSAGES[2], f"{PASSAGES[0]} "])
    contributions = [part["contribution"] for part in by_index[1]["sentences"]]
    assert contributions == pytest.approx([whole - first, whole - second], abs=2 * LOGIT_TOLERANCE)


@pytest.mark.parametrize(
    ("route", "model_id"),
    [
        ("/v1/retrieval/nvidia/reranking", LLAMA),
        ("/v1/retrieval/nvidia/llama-3_2-nv-rerankqa-1b-v2/reranking", LLAMA),
        ("/v1/retrieval/nvidia/llama-nemotron-rerank-1b-v2/reranking", LLAMA),
        ("/v1/retrieval/nvidia/nv-rerankqa-mistral-4b-v3/reranking", MISTRAL),
    ],
)
def test_the_hosted_routes_serve_the_model_of_their_slug(
    client: httpx.Client, references: dict[str, Reference], route: str, model_id: str
) -> None:
    response = client.post(route, json=ranking_body(None, QUERY, PASSAGES))
    assert_ranked(response, references[model_id].logits(QUERY, PASSAGES))


def test_a_model_in_the_body_takes_precedence_over_the_slug(
    client: httpx.Client, references: dict[str, Reference]
) -> None:
    route = "/v1/retrieval/nvidia/llama-3_2-nv-rerankqa-1b-v2/reranking"
    response = client.post(route, json=ranking_body(MISTRAL, QUERY, PASSAGES))
    assert_ranked(response, references[MISTRAL].logits(QUERY, PASSAGES))


def test_an_unknown_model_is_404_with_the_served_names(client: httpx.Client) -> None:
    error = assert_error(_rank(client, PASSAGES, model="nvidia/nobody"), 404)
    assert error["detail"][0]["loc"] == ["body", "model"]
    assert all(name in error["message"] for name in ("nvidia/nobody", LLAMA, MISTRAL, MINILM))
    slug = client.post("/v1/retrieval/nvidia/nobody/reranking", json=ranking_body(LLAMA, QUERY, PASSAGES))
    assert assert_error(slug, 404)["detail"][0]["loc"] == ["path", "slug"]


def test_an_unknown_field_is_ignored_and_named(client: httpx.Client, references: dict[str, Reference]) -> None:
    response = _rank(client, PASSAGES, top_n=3)
    assert_ranked(response, references[LLAMA].logits(QUERY, PASSAGES))
    assert response.headers["x-ignored-fields"] == "top_n"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413(client: httpx.Client, service: Service, chunked: bool) -> None:
    body = b" " * (service.config.limits.max_body_bytes + 1)
    content = iter([body[:1000], body[1000:]]) if chunked else body
    response = client.post("/v1/ranking", content=content, headers={"content-type": "application/json"})
    assert str(service.config.limits.max_body_bytes) in assert_error(response, 413)["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
@pytest.mark.parametrize("route", RANKING_ROUTES)
def test_another_content_type_is_415(client: httpx.Client, route: str, content_type: str) -> None:
    response = client.post(route, content=b"{}", headers={"content-type": content_type})
    assert content_type in assert_error(response, 415)["message"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", None])
def test_usual_content_types_of_json_are_accepted(client: httpx.Client, content_type: str | None) -> None:
    request = client.build_request("POST", "/v1/ranking", json=ranking_body(LLAMA, QUERY, PASSAGES))
    del request.headers["content-type"]
    request.headers.update({"content-type": content_type} if content_type else {})
    assert client.send(request).status_code == 200


@pytest.mark.parametrize("route", RANKING_ROUTES)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_wrong_method_is_405_with_the_allowed_one(client: httpx.Client, method: str, route: str) -> None:
    response = client.request(method, route)
    assert_error(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("route", ["/v1", "/v1/nothing", "/v2/ranking", "/v1/%00", "/v1/rank ing"])
def test_an_unknown_route_is_404_in_the_same_envelope(client: httpx.Client, route: str) -> None:
    error = assert_error(client.post(route, json={}), 404)
    assert error["type"] == "not_found_error"


def test_the_request_id_is_returned(client: httpx.Client) -> None:
    for route, status in (("/v1/ranking", 200), ("/v1/nothing", 404)):
        response = client.post(route, json=ranking_body(LLAMA, QUERY, PASSAGES), headers={"x-request-id": "my-id-7"})
        assert (response.status_code, response.headers["x-request-id"]) == (status, "my-id-7")


@pytest.mark.parametrize("authorization", ["Bearer NO_API_KEY_PROVIDED", "Bearer **********", "Basic eDp5", "junk", ""])
def test_without_keys_any_authorization_is_accepted(client: httpx.Client, authorization: str) -> None:
    response = client.post(
        "/v1/ranking", json=ranking_body(LLAMA, QUERY, PASSAGES), headers={"authorization": authorization}
    )
    assert response.status_code == 200


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer", f"Basic {KEY}", KEY])
def test_a_wrong_key_is_401(service: Service, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    with httpx.Client(base_url=service.keyed_url, headers=headers, timeout=CLIENT_TIMEOUT_S) as client:
        for response in (client.post("/v1/ranking", content=b"not even JSON"), client.get("/v1/models")):
            assert assert_error(response, 401)["type"] == "authentication_error"
            assert response.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/health/ready").status_code == 200


def test_the_right_key_is_accepted(service: Service, references: dict[str, Reference]) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=service.keyed_url, headers=headers, timeout=CLIENT_TIMEOUT_S) as client:
        assert_ranked(_rank(client, PASSAGES, model=None), references[LLAMA].logits(QUERY, PASSAGES))
        assert client.get("/v1/models").status_code == 200


def test_health_answers_match_those_of_a_nim(client: httpx.Client) -> None:
    live, ready = client.get("/v1/health/live"), client.get("/v1/health/ready")
    assert live.json() == {"object": "health.response", "message": "Service is live.", "status": "live"}
    expected = {"object": "health.response", "message": "Service is ready.", "status": "ready", "ready": True}
    assert ready.json() == expected
    assert (live.status_code, ready.status_code) == (200, 200)


def test_the_page_is_served_under_any_prefix(client: httpx.Client, service: Service) -> None:
    for page in (client.get("/"), httpx.get(f"{service.keyed_url}/", timeout=CLIENT_TIMEOUT_S)):
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]


def test_another_vendors_api_gives_the_same_ranking(client: httpx.Client, references: dict[str, Reference]) -> None:
    body = {"model": MINILM, "query": QUERY, "documents": PASSAGES}
    results = client.post("/v2/rerank", json=body).json()["results"]
    logits = references[MINILM].logits(QUERY, PASSAGES)
    for result in results:
        assert result["relevance_score"] == pytest.approx(1 / (1 + math.exp(-logits[result["index"]])), abs=1e-4)
    assert [result["index"] for result in results] == sorted(range(len(logits)), key=lambda index: -logits[index])


def test_models_are_listed_with_their_aliases(client: httpx.Client, service: Service) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert all(entry["object"] == "model" for entry in listed["data"])
    roots = [(entry["id"], entry["root"]) for entry in listed["data"]]
    assert roots == [(name, model.id) for model in service.config.models for name in model.names]


def test_metadata_version_license_and_manifest(client: httpx.Client, service: Service) -> None:
    metadata, manifest = client.get("/v1/metadata").json(), client.get("/v1/manifest").json()
    ids = [model.id for model in service.config.models]
    assert metadata["version"] == __version__
    assert [model["shortName"] for model in metadata["modelInfo"]] == ids
    assert all(model["modelUrl"] for model in metadata["modelInfo"])
    assert [entry["model"] for entry in manifest["manifest"]] == ids
    assert client.get("/v1/version").json()["release"] == __version__
    assert client.get("/v1/license").json()["spdx"] == "Apache-2.0"


@pytest.mark.parametrize("route", ["/metrics", "/v1/metrics"])
def test_metrics_count_requests_and_passages(client: httpx.Client, route: str) -> None:
    before = _metrics(client, route)
    _rank(client, PASSAGES, model=MINILM)
    _rank(client, PASSAGES, model="nvidia/nobody")
    after = _metrics(client, route)
    rises = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name)}
    assert rises[f'rerank_requests_total{{dialect="nim",model="{MINILM}",status="200"}}'] == 1
    assert rises['rerank_requests_total{dialect="nim",model="unknown",status="404"}'] == 1
    assert rises[f'rerank_passages_total{{model="{MINILM}"}}'] == len(PASSAGES)
    assert rises[f'rerank_forward_seconds_count{{model="{MINILM}"}}'] == 1
    assert rises[f'rerank_batch_tokens_count{{model="{MINILM}"}}'] >= 1
    assert rises[f'rerank_device_busy_seconds_total{{model="{MINILM}"}}'] > 0
    assert after[f'rerank_device_memory_bytes{{model="{MINILM}"}}'] > 100_000_000
    assert after[f'rerank_device_tokens_per_second{{model="{MINILM}"}}'] > 0
    assert after[f'rerank_device_waiting_tokens{{model="{MINILM}"}}'] == 0
    assert after[f'rerank_outstanding_tokens{{model="{MINILM}"}}'] == 0


def _rank(client: httpx.Client, passages: list[str], model: str | None = LLAMA, **options: Any) -> httpx.Response:
    return client.post("/v1/ranking", json=ranking_body(model, QUERY, passages, **options))


def _shards(service: Service, passages: list[str]) -> list[Any]:
    return list(cut_into_shards("", "", QUERY, passages, Fitting(), service.config.service.ingress.shard_tokens))


def _metrics(client: httpx.Client, route: str) -> dict[str, float]:
    response = client.get(route)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in response.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
