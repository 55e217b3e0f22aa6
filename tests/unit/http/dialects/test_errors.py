"""Errors of all APIs: status, form and message."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from rerank_service.config import ModelConfig
from rerank_service.errors import NonFiniteLogit, QueueFull, ReplicaUnavailable
from tests.unit.http.dialects.forms import (
    ALL_FORMS,
    UNKNOWN_MODEL,
    ask,
    message_of,
    serving,
)


@pytest.mark.parametrize("name", sorted(UNKNOWN_MODEL.keys() - {"tei"}))
async def test_an_unknown_model_is_404_in_the_vendors_form(client: httpx.AsyncClient, name: str) -> None:
    response = await ask(client, name, model="nope")
    assert (response.status_code, response.json()) == (404, UNKNOWN_MODEL[name])


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
    ("vllm", {"instruction": "rank well"}, 400, "instruction is not supported; leave it out"),
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
