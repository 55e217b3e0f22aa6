"""Middleware for Serve's proxies: retries a ranking whose ingress died, and gives the proxy's own errors the service's
JSON form.

If an ingress dies, Serve answers with an empty 500. A ranking changes no state, so sending it again is safe; the client
only waits longer. Other applications behind the same proxies are not affected.

A proxy does not read the configuration, which may change while the proxy runs, so the paths come from the dialects.
This module sets no limit on the body: the ingress refuses a body above `limits.max_body_bytes` during the upload, and
the refusal ends the request.
"""

import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rerank_service.errors import ReplicaUnavailable, RequestTimedOut
from rerank_service.http.dialects import RANKING_PATHS
from rerank_service.http.envelope import error_response

__all__ = ["MAX_ATTEMPTS", "RetryLostIngress"]

MAX_ATTEMPTS = 2
"""Number of ingresses that one request may reach, so that a harmful body crashes at most this many ingresses. HAProxy
has the same limit."""

_TIMED_OUT, _LOST, _UNAVAILABLE = 408, 500, 503


def _pattern(path: str) -> str:
    return "[^/]+".join(re.escape(part) for part in re.split(r"\{\w+\}", path))


# Not anchored at the start: an application may have a route prefix.
_RANKING_PATH = re.compile(f"(?:{'|'.join(map(_pattern, RANKING_PATHS))})$")


class RetryLostIngress:
    """ASGI middleware in front of Serve's proxy. It retries a ranking once if the ranking's ingress dies."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not _RANKING_PATH.search(scope["path"]):
            return await self._app(scope, receive, send)
        started_s = time.perf_counter()
        body = _RecordedBody(receive)
        status = await self._attempt(scope, body.read, send)
        for _ in range(MAX_ATTEMPTS - 1):
            if status == _LOST and body.is_complete:
                status = await self._attempt(scope, body.replay(), send)
        if status is not None and not body.has_disconnected:
            elapsed_s = round(time.perf_counter() - started_s)
            error = RequestTimedOut(elapsed_s) if status == _TIMED_OUT else ReplicaUnavailable("the HTTP ingress")
            await error_response(error)(scope, receive, send)
        return None

    async def _attempt(self, scope: Scope, receive: Receive, send: Send) -> int | None:
        """Sends the request once. Returns null if the ingress answered. If the proxy itself answered, withholds this
        answer and returns its status."""
        withheld: int | None = _LOST  # remains if there is no answer at all

        async def pass_on(message: Message) -> None:
            nonlocal withheld
            if message["type"] == "http.response.start":
                withheld = message["status"] if _is_by_proxy(message) else None
            if withheld is None:
                await send(message)

        try:
            await self._app(dict(scope), receive, pass_on)
        except Exception:
            if withheld is None:  # part of the answer has already been sent
                raise
        return withheld


class _RecordedBody:
    """Forwards a request's messages and keeps them for a retry."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has arrived and the client is still connected."""
        messages = self._messages
        return bool(messages) and messages[-1]["type"] == "http.request" and not messages[-1].get("more_body", False)

    @property
    def has_disconnected(self) -> bool:
        """Whether the client has closed the connection."""
        return bool(self._messages) and self._messages[-1]["type"] == "http.disconnect"

    async def read(self) -> Message:
        message = await self._receive()
        self._messages.append(message)
        return message

    def replay(self) -> Receive:
        """Returns a channel that yields the kept messages and then new messages."""
        messages = list(self._messages)

        async def receive() -> Message:
            return messages.pop(0) if messages else await self.read()

        return receive


def _is_by_proxy(start: Message) -> bool:
    """Whether an answer comes from the proxy itself. The service answers all errors in JSON, so a plain-text error
    comes from the proxy."""
    headers = dict(start.get("headers", []))
    is_error = start["status"] in (_TIMED_OUT, _LOST, _UNAVAILABLE)
    return is_error and not headers.get(b"content-type", b"").startswith(b"application/")
