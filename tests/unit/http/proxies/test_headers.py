"""Headers that must not reach Serve's proxy."""

import pytest
from starlette.types import Message, Scope

from rerank_service.http.proxies.headers import IMPORT_PATH, DefuseHeaders, MergeLeadingSlashes, proxy_middlewares
from rerank_service.http.proxies.retry import RetryLostIngress


async def seen_behind(headers: list[tuple[bytes, bytes]], kind: str = "http") -> list[tuple[bytes, bytes]]:
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Scope, _receive: object, _send: object) -> None:
        seen.extend(scope["headers"])

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(_: Message) -> None:
        pass

    await DefuseHeaders(app)({"type": kind, "headers": headers}, receive, send)
    return seen


async def test_headers_that_the_proxy_acts_on_are_renamed_or_dropped() -> None:
    kept = [(b"authorization", b"Bearer k"), (b"x-request-id", b"abc-1")]
    sent = [
        *kept,
        (b"x-request-timeout-seconds", b"0"),
        (b"x-request-disconnect-disabled", b"?1"),
        (b"x-rerank-timeout-seconds", b"9999"),  # only the middleware may set it
    ]
    assert await seen_behind(sent) == [*kept, (b"x-rerank-timeout-seconds", b"0")]


@pytest.mark.parametrize("request_id", [b"x" * 129, b"two\nlines", "schräg".encode()])
async def test_a_request_id_that_must_not_be_logged_is_dropped(request_id: bytes) -> None:
    assert await seen_behind([(b"x-request-id", request_id)]) == []


async def test_other_scopes_pass_unchanged() -> None:
    assert await seen_behind([(b"x-request-id", b"x" * 200)], "websocket") == [(b"x-request-id", b"x" * 200)]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("//prefix/v1/rerank", "/prefix/v1/rerank"),
        ("///", "/"),
        ("/prefix//v1/rerank/", "/prefix//v1/rerank/"),
        ("/", "/"),
        ("", ""),
    ],
)
async def test_a_route_prefix_is_found_behind_a_doubled_slash(path: str, expected: str) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, _receive: object, _send: object) -> None:
        seen.append(scope)

    async def unused(*_: object) -> Message:
        raise AssertionError

    scope = {"type": "http", "path": path, "headers": []}
    await MergeLeadingSlashes(app)(scope, unused, unused)  # type: ignore[arg-type]

    assert [one["path"] for one in seen] == [expected]
    assert scope["path"] == path


def test_serve_finds_the_middleware(monkeypatch: pytest.MonkeyPatch) -> None:
    assert IMPORT_PATH == "rerank_service.http.proxies.headers:proxy_middlewares"
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    assert [middleware.cls for middleware in proxy_middlewares()] == [
        RetryLostIngress,
        DefuseHeaders,
        MergeLeadingSlashes,
    ]
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert [middleware.cls for middleware in proxy_middlewares()] == [DefuseHeaders, MergeLeadingSlashes]
