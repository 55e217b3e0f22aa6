"""Routes, bodies and errors, with the real ranker and engine in this process."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from rerank_service.config import ModelConfig
from rerank_service.errors import NonFiniteLogit, QueueFull, RequestTooLarge
from rerank_service.messages import ReplicaReport, Shard, ShardScores, StartTimes
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import local_model

BODY: dict[str, Any] = {"query": {"text": "a query"}, "passages": [{"text": "one"}, {"text": "two"}, {"text": "one"}]}
JSON = {"content-type": "application/json"}


def by_index(answer: dict[str, Any]) -> list[float]:
    """Logits in the order of the request's passages."""
    return [ranking["logit"] for ranking in sorted(answer["rankings"], key=lambda ranking: ranking["index"])]


@pytest.fixture
def models(checkpoints: dict[str, Path]) -> list[ModelConfig]:
    llama = local_model(checkpoints["llama_bidirec"], window_tokens=64)
    mistral = local_model(checkpoints["mistral"])
    return [
        llama.model_copy(update={"id": "nvidia/llama-3.2-rerank", "aliases": ("nvidia/new-name",)}),
        mistral.model_copy(update={"id": "nvidia/mistral-4b"}),
    ]


@pytest.fixture
async def client(models: list[ModelConfig]) -> AsyncIterator[httpx.AsyncClient]:
    replicas = {model.id: LocalReplica(model) for model in models}
    async with client_of(local_api(models, replicas, limits={"max_passages": 4, "max_body_bytes": 20_000})) as c:
        yield c


async def test_ranks_every_passage_by_logit_then_index(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/ranking", json=BODY)).json()

    assert set(answer) == {"rankings", "usage"}
    assert sorted(ranking["index"] for ranking in answer["rankings"]) == [0, 1, 2]
    keys = [(-ranking["logit"], ranking["index"]) for ranking in answer["rankings"]]
    assert keys == sorted(keys)
    assert all(set(ranking) == {"index", "logit"} for ranking in answer["rankings"])
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize(
    ("path", "model", "served_by"),
    [
        ("/v1/ranking", None, 0),
        ("/v1/ranking", "nvidia/new-name", 0),
        ("/v1/ranking", "NVIDIA/Mistral-4B", 1),
        ("/v1/retrieval/nvidia/reranking", None, 0),
        ("/v1/retrieval/nvidia/llama-3_2-rerank/reranking", None, 0),
        ("/v1/retrieval/nvidia/mistral-4b/reranking", None, 1),
        ("/v1/retrieval/nvidia/mistral-4b/reranking", "nvidia/new-name", 0),
    ],
)
async def test_routes_by_name_alias_and_slug(
    client: httpx.AsyncClient, models: list[ModelConfig], path: str, model: str | None, served_by: int
) -> None:
    expected = (await client.post("/v1/ranking", json=BODY | {"model": models[served_by].id})).json()

    answer = (await client.post(path, json=BODY | {"model": model})).json()

    assert answer["usage"] == expected["usage"]
    assert by_index(answer) == pytest.approx(by_index(expected), abs=1e-5)


BAD_BODIES: list[tuple[str, dict[str, Any], list[str | int], str, str]] = [
    ("no query", {"query": ...}, ["query"], "missing", "query is required"),
    ("query is text", {"query": "q"}, ["query"], "model_type", 'query must be an object: {"text": "..."}'),
    ("blank query", {"query": {"text": " \n\x1c"}}, ["query", "text"], "string_pattern_mismatch",
     "query.text is blank; send a text"),
    ("query is a number", {"query": {"text": 5}}, ["query", "text"], "string_type",
     "query.text must be a valid string"),
    ("no passages", {"passages": []}, ["passages"], "too_short", "passages is empty; send at least one passage"),
    ("a passage is text", {"passages": [{"text": "a"}, "b"]}, ["passages", 1], "model_type",
     'passages[1] must be an object: {"text": "..."}'),
    ("too many passages", {"passages": [{"text": "a"}] * 5}, ["passages"], "too_many_passages",
     "passages has 5 entries; at most 4 are allowed, so split the request"),
    ("unknown truncate", {"truncate": "START"}, ["truncate"], "literal_error",
     "truncate must be 'NONE' or 'END'"),
    ("windows are a number", {"passage_windows": 3}, ["passage_windows"], "model_type",
     "passage_windows must be an object with any of these fields: max_per_passage, tokens, overlap_tokens"),
    ("explain is true", {"explain": True}, ["explain"], "model_type", 'explain must be an object: {"top_n": 3}'),
    ("explain is empty", {"explain": {}}, ["explain", "top_n"], "missing", "explain.top_n is required"),
    ("nothing to explain", {"explain": {"top_n": 0}}, ["explain", "top_n"], "greater_than_equal",
     "explain.top_n must be greater than or equal to 1"),
    ("explain is text", {"explain": {"top_n": "3"}}, ["explain", "top_n"], "int_type",
     "explain.top_n must be a valid integer"),
    ("too many to explain", {"explain": {"top_n": 11}}, ["explain", "top_n"], "too_many_explanations",
     "explain.top_n is 11; at most 10 are allowed (limits.max_explained_passages)"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "loc", "code", "message"), [case[1:] for case in BAD_BODIES],
                         ids=[case[0] for case in BAD_BODIES])  # fmt: skip
async def test_bad_bodies_have_an_exact_envelope(
    client: httpx.AsyncClient, changes: dict[str, Any], loc: list[str | int], code: str, message: str
) -> None:
    body = {key: value for key, value in (BODY | changes).items() if value is not ...}

    response = await client.post("/v1/ranking", json=body)

    assert response.status_code == 400
    assert response.json() == {
        "object": "error",
        "message": message,
        "detail": [{"loc": ["body", *loc], "msg": message, "type": code}],
        "type": "invalid_request_error",
    }


UNKNOWN_FIELDS: list[tuple[str, dict[str, Any], list[str | int], str, str]] = [
    ("unknown field", {"top_n": 2}, ["top_n"], "extra_forbidden",
     "top_n is not a field of this API; accepted here: model, query, passages, truncate, "
     "passage_windows, explain, min_probability"),
    ("unknown inner field", {"passages": [{"text": "a", "title": "b"}]}, ["passages", 0, "title"], "extra_forbidden",
     "passages[0].title is not a field of this API; accepted here: text"),
    ("unknown window option", {"passage_windows": {"stride": 3}}, ["passage_windows", "stride"], "extra_forbidden",
     "passage_windows.stride is not a field of this API; accepted here: max_per_passage, tokens, overlap_tokens"),
    ("unknown explain field", {"explain": {"top_n": 1, "k": 2}}, ["explain", "k"], "extra_forbidden",
     "explain.k is not a field of this API; accepted here: top_n"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "loc", "code", "message"), [case[1:] for case in UNKNOWN_FIELDS],
                         ids=[case[0] for case in UNKNOWN_FIELDS])  # fmt: skip
async def test_the_strict_setting_refuses_unknown_fields(
    models: list[ModelConfig], changes: dict[str, Any], loc: list[str | int], code: str, message: str
) -> None:
    replicas = {model.id: LocalReplica(model) for model in models}
    async with client_of(local_api(models, replicas, limits={"unknown_fields": "reject"})) as client:
        response = await client.post("/v1/ranking", json=BODY | changes)

    assert response.status_code == 400
    assert response.json()["detail"] == [{"loc": ["body", *loc], "msg": message, "type": code}]
    assert "x-ignored-fields" not in response.headers


async def test_many_problems_are_summarised(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/ranking", json=BODY | {"passages": [5] * 100})).json()

    assert len(answer["detail"]) == 11
    assert answer["detail"][-1]["msg"] == "and 90 more problems"


RAW_BODIES = {
    "empty": b"",
    "cut off": b'{"query": {"text": "a"',
    "a list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "latin-1": b'{"query": {"text": "\xe9"}, "passages": [{"text": "p"}]}',
    "utf-16": json.dumps(BODY).encode("utf-16"),
    "lone surrogate": b'{"query": {"text": "\\ud800"}, "passages": [{"text": "p"}]}',
    "not a number": b'{"query": NaN, "passages": [{"text": "p"}]}',
}


@pytest.mark.parametrize("name", RAW_BODIES)
async def test_a_body_that_is_not_a_json_object_gets_400(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post("/v1/ranking", content=RAW_BODIES[name][:20_000], headers=JSON)

    assert response.status_code == 400
    answer = response.json()
    assert (answer["object"], answer["type"]) == ("error", "invalid_request_error")
    assert answer["detail"][0]["loc"][0] == "body"


async def test_errors_do_not_repeat_the_users_text(client: httpx.AsyncClient) -> None:
    body = {"query": {"text": ["my secret"]}, "passages": "my secret", "truncate": "my secret"}
    assert "my secret" not in (await client.post("/v1/ranking", json=body)).text


async def test_a_byte_order_mark_is_accepted(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/ranking", content=b"\xef\xbb\xbf" + json.dumps(BODY).encode(), headers=JSON)
    assert response.status_code == 200


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/vnd.api+json", None])
async def test_every_json_content_type_is_accepted(client: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = await client.post("/v1/ranking", content=json.dumps(BODY).encode(), headers=headers)
    assert response.status_code == 200


async def test_another_content_type_is_415(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/ranking", data={"a": "b"})
    message = "Content-Type is 'application/x-www-form-urlencoded'; send 'Content-Type: application/json'"

    assert response.status_code == 415
    assert response.json() == {
        "object": "error",
        "message": message,
        "detail": [{"loc": ["header", "content-type"], "msg": message, "type": "unsupported_media_type"}],
        "type": "invalid_request_error",
    }


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "compress"])
async def test_an_encoding_other_than_gzip_is_415(client: httpx.AsyncClient, encoding: str) -> None:
    response = await client.post("/v1/ranking", json=BODY, headers={"content-encoding": encoding})

    assert response.status_code == 415
    assert response.json()["message"] == f"Content-Encoding is '{encoding}'; send the body uncompressed, or use gzip"


async def test_repeated_passages_share_a_logit_and_count_each_time(client: httpx.AsyncClient) -> None:
    copies = (await client.post("/v1/ranking", json=BODY | {"passages": [{"text": "one"}] * 4})).json()
    single = (await client.post("/v1/ranking", json=BODY | {"passages": [{"text": "one"}]})).json()

    assert [ranking["index"] for ranking in copies["rankings"]] == [0, 1, 2, 3]
    assert len({ranking["logit"] for ranking in copies["rankings"]}) == 1
    assert copies["usage"]["total_tokens"] == 4 * single["usage"]["total_tokens"]


async def test_a_client_that_disconnects_is_counted_as_499_not_as_500(models: list[ModelConfig]) -> None:
    stuck = Stuck()
    async with client_of(local_api(models, {model.id: stuck for model in models})) as client:
        request = asyncio.ensure_future(client.post("/v1/ranking", json=BODY))
        await stuck.is_asked.wait()
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        text = (await client.get("/metrics")).text

    assert 'status="499"} 1.0' in text
    assert 'status="500"' not in text


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_over_the_limit_is_413(client: httpx.AsyncClient, is_announced: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000

    content: Any = b"x" * 30_000 if is_announced else chunks()
    response = await client.post("/v1/ranking", content=content, headers=JSON)
    message = "The body is larger than the limit of 20000 bytes (limits.max_body_bytes); split it into smaller requests"

    assert response.status_code == 413
    assert response.json() == {
        "object": "error",
        "message": message,
        "detail": [{"loc": ["body"], "msg": message, "type": "body_too_large"}],
        "type": "invalid_request_error",
    }


async def test_truncate_none_names_the_passage_and_the_window(client: httpx.AsyncClient) -> None:
    body = BODY | {"passages": [{"text": "short"}, {"text": "long " * 200}], "truncate": "NONE"}

    response = await client.post("/v1/ranking", json=body)

    assert response.status_code == 400
    assert "exceeds maximum allowed token size 64" in response.json()["message"]
    assert response.json()["detail"][0]["loc"] == ["body", "passages", 1, "text"]
    assert (await client.post("/v1/ranking", json=body | {"truncate": "END"})).status_code == 200


async def test_truncate_none_names_a_query_that_is_too_long_on_its_own(client: httpx.AsyncClient) -> None:
    body = {"query": {"text": "word " * 200}, "truncate": "NONE"}
    message = "(query.text with the model's prompt, without any passage); shorten the query"

    for passages in (["short"], ["", LONG], [LONG, "short"]):
        for windows in (None, {"max_per_passage": 2}):
            texts = [{"text": text} for text in passages]
            response = await client.post("/v1/ranking", json=body | {"passages": texts, "passage_windows": windows})
            (problem,) = response.json()["detail"]
            assert (response.status_code, problem["loc"]) == (400, ["body", "query", "text"])
            assert problem["type"] == "query_too_long"
            assert re.fullmatch(r"Input length 607 exceeds maximum allowed token size 64 .*", problem["msg"])
            assert problem["msg"].endswith(message)


@pytest.mark.parametrize(
    ("path", "model", "loc"),
    [("/v1/ranking", "nope", ["body", "model"]), ("/v1/retrieval/nvidia/nope/reranking", None, ["path", "slug"])],
)
async def test_the_error_for_an_unknown_model_lists_the_served_models(
    client: httpx.AsyncClient, path: str, model: str | None, loc: list[str]
) -> None:
    response = await client.post(path, json=BODY | {"model": model})
    message = (
        "Unknown model 'nope'; this service has: nvidia/llama-3.2-rerank, nvidia/new-name, nvidia/mistral-4b. "
        "Send one of these names, or add the name to models[].aliases"
    )

    assert response.status_code == 404
    assert response.json() == {
        "object": "error",
        "message": message,
        "detail": [{"loc": loc, "msg": message, "type": "model_not_found"}],
        "type": "not_found_error",
    }


async def test_wrong_routes_and_methods_get_the_error_envelope(client: httpx.AsyncClient) -> None:
    missing, wrong = await client.get("/v1/rank"), await client.get("/v1/ranking")

    assert missing.status_code == 404
    assert missing.json() == {
        "object": "error",
        "message": "There is no route /v1/rank; the API is described at /docs",
        "detail": [
            {
                "loc": ["path"],
                "msg": "There is no route /v1/rank; the API is described at /docs",
                "type": "not_found",
            }
        ],
        "type": "not_found_error",
    }
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["message"] == "GET is not allowed on /v1/ranking; use POST"


@pytest.mark.parametrize(
    ("path", "status", "start"),
    [
        ("/v1/v1/rerank", 404, "There is no route /v1/v1/rerank"),  # the client appends /v1/rerank to the address
        ("/v1", 404, "There is no route /v1"),  # the client appends nothing to the address
        ("/v1/chat/completions", 404, "There is no route /v1/chat/completions"),
        ("/v1/models", 405, "POST is not allowed on /v1/models; use GET, HEAD"),
    ],
)
async def test_a_request_to_a_wrong_address_learns_where_rankings_are(
    client: httpx.AsyncClient, path: str, status: int, start: str
) -> None:
    answer = await client.post(path, json=BODY)

    assert answer.status_code == status
    assert answer.json()["message"] == (
        f"{start}; rankings are at /v1/ranking, /v1/rerank, /v2/rerank, /rerank, /score and /v1/score, "
        "and the API is described at /docs"
    )


@pytest.mark.parametrize(
    ("path", "shown"), [("/v1/v1/rerank", "/v1/v1/rerank"), ("/what is%0Athis", "other"), ("/" + "a" * 100, "other")]
)
async def test_the_log_shows_a_request_to_a_wrong_address(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, path: str, shown: str
) -> None:
    """Many clients hide the answer and keep the old order. Paths that could contain a text are not logged."""
    with caplog.at_level("INFO", logger="rerank_service"):
        await client.post(path, json=BODY)
    assert caplog.messages == [f"request status=404 code=no_route path={shown}"]
    assert (vars(caplog.records[0])["status"], vars(caplog.records[0])["path"]) == (404, shown)


async def test_a_wrong_address_learns_only_of_the_routes_that_are_served(models: list[ModelConfig]) -> None:
    async with client_of(local_api(models, {}, dialects=["voyage"])) as client:
        message = (await client.post("/rerank", json=BODY)).json()["message"]
    assert message.startswith("There is no route /rerank; rankings are at /v1/ranking and /v1/rerank, and ")


async def test_unknown_fields_are_ignored_and_named(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    passages = [{"text": one["text"], "id": 1} for one in BODY["passages"]]
    extra: dict[str, Any] = {"top_n": 1, "my secret field": 5, "x" * 41: 5, "x": 5, "passage_windows": {"k": 1}}
    with caplog.at_level("INFO", logger="rerank_service"):
        plain = await client.post("/v1/ranking", json=BODY)
        response = await client.post("/v1/ranking", json=BODY | extra | {"passages": passages})
    metrics = (await client.get("/metrics")).text

    assert response.status_code == 200
    assert response.json() == plain.json()
    assert "x-ignored-fields" not in plain.headers
    names = response.headers["x-ignored-fields"].split(", ")
    assert sorted(names) == ["other", "passage_windows.k", "passages.id", "top_n", "x"]
    assert 'rerank_ignored_fields_total{dialect="nim",field="other"} 1.0' in metrics
    assert 'rerank_ignored_fields_total{dialect="nim",field="top_n"} 1.0' in metrics
    assert "ignored_fields=other,top_n" in caplog.text
    assert "secret" not in caplog.text + metrics


async def test_the_header_names_ten_ignored_fields(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/ranking", json=BODY | {f"x{index}": 1 for index in range(50)})
    assert len(response.headers["x-ignored-fields"].split(", ")) == 10


async def test_a_misspelt_field_is_named_if_a_required_field_is_missing(client: httpx.AsyncClient) -> None:
    body = {"query": BODY["query"], "passagse": BODY["passages"], "top_n": 1}
    answer = (await client.post("/v1/ranking", json=body)).json()
    assert [one["loc"][1:] for one in answer["detail"]] == [["passages"], ["passagse"], ["top_n"]]


async def test_other_problems_do_not_blame_ignored_fields(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/ranking", json=BODY | {"truncate": "START", "top_n": 1})).json()
    assert [one["loc"] for one in answer["detail"]] == [["body", "truncate"]]


async def test_keys_guard_ranking_and_models(models: list[ModelConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", "nvapi-secret")
    replicas = {model.id: LocalReplica(model) for model in models}
    async with client_of(local_api(models, replicas)) as client:
        missing = await client.post("/v1/ranking", content=b"not even json")
        wrong = await client.get("/v1/models", headers={"authorization": "Bearer nope"})
        right = await client.post("/v1/ranking", json=BODY, headers={"authorization": "Bearer nvapi-secret"})
        probes = [await client.get(path) for path in ("/v1/health/live", "/metrics", "/v1/version", "/openapi.json")]

    message = "Missing API key: send the header 'Authorization: Bearer <key>' with a valid key"
    assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
    assert missing.json() == {
        "object": "error",
        "message": message,
        "detail": [{"loc": ["header", "authorization"], "msg": message, "type": "invalid_api_key"}],
        "type": "authentication_error",
    }
    assert (wrong.status_code, right.status_code) == (401, 200)
    assert [probe.status_code for probe in probes] == [200] * 4
    assert probes[-1].json()["security"] == [{"BearerAuth": []}]


class _Broken:
    """A replica that fails with a given error, or hangs if there is none."""

    def __init__(self, fail: Callable[[], BaseException | None]) -> None:
        self._fail = fail

    def remote(self, _: Any) -> "asyncio.Task[None]":
        async def score() -> None:
            error = self._fail()
            if error is not None:
                raise error
            await asyncio.Event().wait()

        return asyncio.ensure_future(score())


@pytest.mark.parametrize(
    ("error", "status", "category", "retry_after"),
    [
        (QueueFull(10, 9), 503, "overloaded_error", "1"),
        (NonFiniteLogit(2), 500, "api_error", None),
        (ZeroDivisionError("my secret"), 500, "api_error", None),
    ],
)
async def test_failures_of_replicas_become_error_responses(
    models: list[ModelConfig], error: Exception, status: int, category: str, retry_after: str | None
) -> None:
    replicas = {model.id: _Broken(lambda: error) for model in models}
    async with client_of(local_api(models, replicas)) as client:
        response = await client.post("/v1/ranking", json=BODY)

    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    assert (response.json()["object"], response.json()["type"]) == ("error", category)
    assert "secret" not in response.text


async def test_a_request_that_takes_too_long_is_dropped(models: list[ModelConfig]) -> None:
    replicas = {model.id: _Broken(lambda: None) for model in models}
    async with client_of(local_api(models, replicas, limits={"request_timeout_s": 0.2})) as client:
        response = await client.post("/v1/ranking", json=BODY)

    assert response.status_code == 504
    assert response.json()["detail"][0]["type"] == "request_timed_out"


async def test_ready_once_every_model_has_scored(models: list[ModelConfig]) -> None:
    replicas: dict[str, Any] = {model.id: LocalReplica(model) for model in models}
    gate = asyncio.Event()
    working = replicas[models[1].id]

    class Late:
        def remote(self, shard: Any) -> Any:
            async def score() -> Any:
                await gate.wait()
                return await working.remote(shard)

            return asyncio.ensure_future(score())

    replicas[models[1].id] = Late()
    async with client_of(local_api(models, replicas)) as client:
        early = await client.get("/v1/health/ready")
        gate.set()
        while (ready := await client.get("/v1/health/ready")).status_code == 503:
            await asyncio.sleep(0.01)

    assert early.status_code == 503
    assert early.json()["ready"] is False
    assert "nvidia/mistral-4b" in early.json()["message"]
    assert ready.json() == {
        "object": "health.response",
        "message": "Service is ready.",
        "status": "ready",
        "ready": True,
    }


async def test_models_lists_the_default_first(models: list[ModelConfig]) -> None:
    replicas = {model.id: LocalReplica(model) for model in models}
    async with client_of(local_api(models, replicas, service={"default_model": "nvidia/mistral-4b"})) as client:
        answer = (await client.get("/v1/models")).json()

    entries = [(entry["id"], entry["root"]) for entry in answer["data"]]
    assert entries == [
        ("nvidia/mistral-4b", "nvidia/mistral-4b"),
        ("nvidia/llama-3.2-rerank", "nvidia/llama-3.2-rerank"),
        ("nvidia/new-name", "nvidia/llama-3.2-rerank"),
    ]


async def test_metadata_shows_precision_and_start_once_a_replica_has_reported_them(models: list[ModelConfig]) -> None:
    class Reporting:
        """Replicas that report a different precision each time."""

        precisions = iter(("bfloat16", "int8", "float32"))

        def remote(self, shard: Shard) -> "asyncio.Task[ShardScores]":
            facts = (f"replica {len(heard)}", (), 0.0, 0, 0, 0, 0.0, 0, None, next(self.precisions))
            report = ReplicaReport(*facts, start=StartTimes(0.5, 9.04, 40.0, 2.0 - len(heard), 1.0))
            heard.append(shard)

            async def score() -> ShardScores:
                return ShardScores((1.0,), (9,), (False,), (False,), 0.0, 0.0, 0.0, report=report)

            return asyncio.ensure_future(score())

    heard: list[Shard] = []
    replicas = {models[0].id: Reporting(), models[1].id: Stuck()}
    body = BODY | {"passages": [{"text": "one"}]}
    async with client_of(local_api(models, replicas)) as client:
        before = (await client.get("/v1/metadata")).json()
        while not heard:  # waits until readiness sends its test pair
            await asyncio.sleep(0.01)
        for _ in range(2):
            await client.post("/v1/ranking", json=body)
        after = (await client.get("/v1/metadata")).json()

    assert [one["unverified"] for one in before["modelInfo"]] == [None, None]
    assert [one["precision"] for one in before["modelInfo"]] == [None, None]
    assert [one["precision"] for one in after["modelInfo"]] == ["int8", None]
    assert [one["start_seconds"] for one in before["modelInfo"]] == [None, None]
    slowest = {"fetch": 0.5, "weights": 9.0, "compile": 40.0, "capture": 2.0, "warm_up": 1.0}
    assert [one["start_seconds"] for one in after["modelInfo"]] == [slowest, None]


async def test_the_numerics_of_a_model_are_in_both_lists(models: list[ModelConfig]) -> None:
    replicas = {models[0].id: LocalReplica(models[0]), models[1].id: Stuck()}
    async with client_of(local_api(models, replicas)) as client:
        await client.post("/v1/ranking", json=BODY | {"model": models[0].id})
        listed = (await client.get("/v1/models")).json()["data"]
        described = (await client.get("/v1/metadata")).json()["modelInfo"]

    assert [one["numerics"] for one in described] == ["float32 on cpu", None]
    assert [one["numerics_reason"] for one in described] == ["engine.dtype is float32", None]
    assert {entry["root"]: entry.get("numerics") for entry in listed} == {
        models[0].id: "float32 on cpu",
        models[1].id: None,
    }


async def test_an_unverified_model_is_marked_in_both_lists(models: list[ModelConfig]) -> None:
    replicas = {model.id: LocalReplica(model) for model in models}
    async with client_of(local_api(models, replicas)) as client:
        for model in models:
            await client.post("/v1/ranking", json=BODY | {"model": model.id})
        listed = (await client.get("/v1/models")).json()["data"]
        described = (await client.get("/v1/metadata")).json()["modelInfo"]

    of_llama, of_mistral = ([entry for entry in listed if entry["root"] == model.id] for model in models)
    assert len(of_llama) == 2
    assert not any("unverified" in entry for entry in of_llama)
    (mistral,) = of_mistral
    assert "do not state the direction of attention, the prompt template or the pooling" in mistral["unverified"]
    assert [one["unverified"] for one in described] == [None, mistral["unverified"]]


async def test_metrics_count_requests_passages_and_tokens(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/ranking", json=BODY)).json()
    await client.post("/v1/ranking", json={})
    text = (await client.get("/v1/metrics")).text

    model = 'model="nvidia/llama-3.2-rerank"'
    assert f'rerank_requests_total{{dialect="nim",{model},status="200"}} 1.0' in text
    assert 'rerank_requests_total{dialect="nim",model="unknown",status="400"} 1.0' in text
    assert f"rerank_passages_total{{{model}}} 3.0" in text
    assert f"rerank_tokens_total{{{model}}} {float(answer['usage']['total_tokens'])}" in text
    assert f"rerank_request_seconds_count{{{model}}} 1.0" in text
    assert f"rerank_outstanding_tokens{{{model}}} 0.0" in text
    assert (await client.get("/metrics")).status_code == 200


async def test_refusals_are_counted_by_their_cause(models: list[ModelConfig]) -> None:
    replicas = {model.id: _Broken(lambda: QueueFull(10, 20, 3)) for model in models}
    limits = {"requests_per_minute": 1}
    async with client_of(local_api(models, replicas, rate_limits=limits)) as client:
        for _ in range(2):
            await client.post("/v1/ranking", json=BODY)
        text = (await client.get("/metrics")).text

    assert 'rerank_shed_requests_total{code="queue_full",model="nvidia/llama-3.2-rerank"} 1.0' in text
    assert 'rerank_limited_requests_total{limit="requests"} 1.0' in text


async def test_server_timing_lists_each_stage(client: httpx.AsyncClient) -> None:
    timing = (await client.post("/v1/ranking", json=BODY)).headers["server-timing"]
    milliseconds = {name: float(value) for name, value in re.findall(r"(\w+);dur=([0-9.]+)", timing)}
    assert list(milliseconds) == ["parse", "tokenise", "queue", "forward", "total"]
    assert 0 < milliseconds["forward"] <= milliseconds["total"]


async def test_each_request_logs_one_line_of_sizes_and_times(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "rerank_service.telemetry.observation"):
        answer = await client.post("/v1/ranking", json=BODY)
        await client.post("/v1/ranking", json=BODY | {"model": "nobody's secret"})

    ranked, refused = [record for record in caplog.records if record.name.endswith("observation")]
    assert ranked.status == 200  # type: ignore[attr-defined] - what JSON logs have as fields
    assert ranked.num_tokens == answer.json()["usage"]["total_tokens"]  # type: ignore[attr-defined]
    assert ranked.getMessage().startswith(
        "request status=200 dialect=nim model=nvidia/llama-3.2-rerank num_passages=3 "
    )
    assert "code=model_not_found" in refused.getMessage()
    assert not any(text in caplog.text for text in ("a query", "secret"))


@pytest.mark.parametrize(("share", "num_lines"), [(0.0, 1), (1.0, 3)])
async def test_successes_are_logged_by_sample_and_errors_always(
    models: list[ModelConfig], share: float, num_lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    replicas = {model.id: LocalReplica(model) for model in models}
    async with client_of(local_api(models, replicas, logs={"access_sample_ratio": share})) as client:
        with caplog.at_level("INFO", "rerank_service.telemetry.observation"):
            for body in (BODY, BODY, {}):
                await client.post("/v1/ranking", json=body)
    assert len([record for record in caplog.records if record.name.endswith("observation")]) == num_lines


async def test_the_documentation_page_needs_no_other_host(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    assert "://" not in page.replace("http://www.w3.org", "")
    assert (await client.get("/static-offline-docs/swagger-ui-bundle.js")).status_code == 200


LONG = " ".join(f"Sentence {number} is about nothing." for number in range(30))


async def test_passages_without_room_next_to_the_query_are_counted(client: httpx.AsyncClient) -> None:
    """The query fills the window of 64 tokens, so no token of a passage is scored. An empty passage does not count."""
    passages = [{"text": "short"}, {"text": ""}, {"text": "short"}]
    response = await client.post("/v1/ranking", json={"query": {"text": "word " * 200}, "passages": passages})
    long = await client.post("/v1/ranking", json=BODY | {"passages": [{"text": LONG}]})
    refused = await client.post(
        "/v1/ranking", json={"query": {"text": "word " * 200}, "passages": passages, "truncate": "NONE"}
    )

    counts = [response.headers[f"x-rerank-{what}-passages"] for what in ("truncated", "unscored")]
    assert counts == ["3", "2"]
    assert [long.headers[f"x-rerank-{what}-passages"] for what in ("truncated", "unscored")] == ["1", "0"]
    assert refused.status_code == 400
    assert "x-rerank-truncated-passages" not in refused.headers


async def test_windows_are_used_only_on_request(client: httpx.AsyncClient) -> None:
    """Text beyond the model's window of 64 tokens changes a logit only if windows are used."""
    body = BODY | {"passages": [{"text": "short"}, {"text": LONG + " one end"}, {"text": LONG + " another end"}]}
    cut = (await client.post("/v1/ranking", json=body)).json()
    none = (await client.post("/v1/ranking", json=body | {"passage_windows": None})).json()
    response = await client.post("/v1/ranking", json=body | {"passage_windows": {"max_per_passage": 16}})

    assert none == cut
    assert by_index(cut)[1] == by_index(cut)[2]
    assert response.status_code == 200
    in_windows = response.json()
    assert by_index(in_windows)[0] == by_index(cut)[0]
    assert in_windows["usage"]["total_tokens"] > 5 * cut["usage"]["total_tokens"]


async def test_truncate_none_refuses_text_beyond_the_last_window(client: httpx.AsyncClient) -> None:
    body = BODY | {"passages": [{"text": "short"}, {"text": LONG}], "truncate": "NONE"}
    few = await client.post("/v1/ranking", json=body | {"passage_windows": {"max_per_passage": 2}})
    query = body | {"query": {"text": "word " * 15}}  # leaves 12 tokens: too few for windows
    no_room = await client.post("/v1/ranking", json=query | {"passage_windows": {"max_per_passage": 2}})
    many = await client.post("/v1/ranking", json=body | {"passage_windows": {}})

    assert few.status_code == 400
    assert few.json()["detail"][0]["loc"] == ["body", "passages", 1, "text"]
    assert few.json()["message"].endswith("or send a larger passage_windows.max_per_passage, or truncate: END")
    assert no_room.status_code == 400
    assert no_room.json()["message"].endswith("shorten the input, or send truncate: END")
    assert many.status_code == 200


@pytest.mark.parametrize(
    ("options", "limit", "loc", "message"),
    [
        ({"max_per_passage": 17}, 16, ["max_per_passage"], "passage_windows.max_per_passage is 17; at most 16 are"),
        ({}, 1, [], "passage_windows is turned off on this service; leave it out"),
        ({"max_per_passage": 0}, 16, ["max_per_passage"], "passage_windows.max_per_passage must be greater"),
        ({"tokens": 15}, 16, ["tokens"], "passage_windows.tokens must be greater than or equal to 16"),
        ({"tokens": "64"}, 16, ["tokens"], "passage_windows.tokens must be a valid integer"),
        ({"overlap_tokens": True}, 16, ["overlap_tokens"], "passage_windows.overlap_tokens must be a valid"),
        ({"overlap_tokens": -1}, 16, ["overlap_tokens"], "passage_windows.overlap_tokens must be greater"),
    ],
)
async def test_invalid_window_options_are_named(
    models: list[ModelConfig], options: dict[str, int], limit: int, loc: list[str], message: str
) -> None:
    replicas = {model.id: LocalReplica(model) for model in models}
    async with client_of(local_api(models, replicas, limits={"max_windows_per_passage": limit})) as c:
        response = await c.post("/v1/ranking", json=BODY | {"passage_windows": options})

    assert response.status_code == 400
    (problem,) = response.json()["detail"]
    assert problem["loc"] == ["body", "passage_windows", *loc]
    assert message in problem["msg"]


async def test_a_client_can_shorten_the_time_limit_but_not_lengthen_it(models: list[ModelConfig]) -> None:
    stuck = Stuck()
    replicas = dict.fromkeys([model.id for model in models], stuck)
    async with client_of(local_api(models, replicas, limits={"request_timeout_s": 0.2})) as c:
        shortened = await c.post("/v1/ranking", json=BODY, headers={"x-request-timeout-seconds": "0.05"})
        lengthened = await c.post("/v1/ranking", json=BODY, headers={"x-request-timeout-seconds": "900"})
        wrong = await c.post("/v1/ranking", json=BODY, headers={"x-request-timeout-seconds": "never"})

    assert shortened.status_code == lengthened.status_code == 504
    assert "within 0.05 s" in shortened.json()["message"]
    assert "within 0.2 s" in lengthened.json()["message"]
    asked = [shard.timeout_s for shard in stuck.shards if shard.query == "a query"]  # without readiness's own requests
    assert 0 < asked[0] <= 0.05 < asked[1] <= 0.2
    assert wrong.status_code == 400
    assert wrong.json()["detail"][0]["loc"] == ["header", "x-request-timeout-seconds"]


async def test_a_rate_limited_caller_learns_when_to_retry(models: list[ModelConfig]) -> None:
    replicas = {model.id: LocalReplica(model) for model in models}
    limits = {"requests_per_minute": 2, "passages_per_minute": 600}
    async with client_of(local_api(models, replicas, rate_limits=limits)) as c:
        answers = [await c.post("/v1/ranking", json=BODY) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[1].headers["x-ratelimit-remaining-requests"] == "0"
    assert answers[1].headers["x-ratelimit-remaining-passages"] == "594"
    refused = answers[2]
    assert refused.json()["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


async def test_a_request_larger_than_the_queue_gets_413_without_retry_after(models: list[ModelConfig]) -> None:
    class Full:
        async def remote(self, shard: Shard) -> None:
            raise RequestTooLarge(shard.request_tokens, 10)

    async with client_of(local_api(models, {model.id: Full() for model in models})) as c:
        answer = await c.post("/v1/ranking", json=BODY)

    assert answer.status_code == 413
    assert "retry-after" not in answer.headers
    assert answer.json()["detail"][0]["loc"] == ["body", "passages"]


class Stuck:
    """A replica that never answers."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self.is_asked = asyncio.Event()
        """Set once a request arrives; readiness's test pair does not count."""

    def remote(self, shard: Shard) -> "asyncio.Future[None]":
        self.shards.append(shard)
        if shard.query == BODY["query"]["text"]:
            self.is_asked.set()
        return asyncio.get_running_loop().create_future()


async def test_openapi_states_the_limit_of_windows(models: list[ModelConfig]) -> None:
    replicas = {model.id: LocalReplica(model) for model in models}
    for limit in (1, 9):
        async with client_of(local_api(models, replicas, limits={"max_windows_per_passage": limit})) as c:
            schemas = (await c.get("/openapi.json")).json()["components"]["schemas"]
        request = schemas["RankingRequestDefaultModel"]["properties"]
        if limit == 1:
            assert "passage_windows" not in request
            assert "WindowOptions" not in schemas
        else:
            maximum, _ = schemas["WindowOptions"]["properties"]["max_per_passage"]["anyOf"]
            assert maximum == {"type": "integer", "minimum": 1, "maximum": 9}
