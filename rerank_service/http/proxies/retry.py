"""In Serve's proxies: a ranking whose ingress died is sent to another one, and what the proxy itself says has our form.

Serve answers for a dead ingress with an empty 500. Ranking changes nothing, so it is safe to ask again; the client only
waits longer. Other applications behind the same proxies are left alone.

A proxy does not know the configuration, which may change while it runs. The paths come from the dialects themselves. A
body needs no limit here: the ingress refuses one above `limits.max_body_bytes` while it comes, which ends the request.
"""

import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rerank_service.errors import ReplicaUnavailable, RequestTimedOut
from rerank_service.http.dialects import RANKING_PATHS
from rerank_service.http.envelope import error_response

__all__ = ["MAX_ATTEMPTS", "RetryLostIngress"]

MAX_ATTEMPTS = 2
"""Ingresses that one request may reach: a body that kills ingresses takes no more than these. HAProxy has the same."""

_TIMED_OUT, _LOST, _UNAVAILABLE = 408, 500, 503


def _pattern(path: str) -> str:
    return "[^/]+".join(re.escape(part) for part in re.split(r"\{\w+\}", path))


_RANKING_PATH = re.compile(f"(?:{'|'.join(map(_pattern, RANKING_PATHS))})$")  # behind an application's route prefix


class RetryLostIngress:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not _RANKING_PATH.search(scope["path"]):
            return await self._app(scope, receive, send)
        started = time.perf_counter()
        kept = _KeptBody(receive)
        status = await self._attempt(scope, kept.read, send)
        for _ in range(MAX_ATTEMPTS - 1):
            if status == _LOST and kept.is_whole:
                status = await self._attempt(scope, kept.again(), send)
        if status is not None and not kept.client_left:
            waited_s = round(time.perf_counter() - started)
            error = RequestTimedOut(waited_s) if status == _TIMED_OUT else ReplicaUnavailable("the HTTP ingress")
            await error_response(error)(scope, receive, send)
        return None

    async def _attempt(self, scope: Scope, receive: Receive, send: Send) -> int | None:
        """The status that the proxy answered with by itself, which is not passed on; null if the ingress answered."""
        withheld: int | None = _LOST  # until somebody says something

        async def pass_on(message: Message) -> None:
            nonlocal withheld
            if message["type"] == "http.response.start":
                withheld = message["status"] if _is_the_proxys(message) else None
            if withheld is None:
                await send(message)

        try:
            await self._app(dict(scope), receive, pass_on)
        except Exception:
            if withheld is None:  # the answer had begun
                raise
        return withheld


class _KeptBody:
    """A request's messages, kept while they pass."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []

    @property
    def is_whole(self) -> bool:
        """Whether all of the body came and the client is still there."""
        messages = self._messages
        return bool(messages) and messages[-1]["type"] == "http.request" and not messages[-1].get("more_body", False)

    @property
    def client_left(self) -> bool:
        """Nobody is there to be told anything."""
        return bool(self._messages) and self._messages[-1]["type"] == "http.disconnect"

    async def read(self) -> Message:
        message = await self._receive()
        self._messages.append(message)
        return message

    def again(self) -> Receive:
        """The same messages, then whatever else comes."""
        messages = list(self._messages)

        async def replay() -> Message:
            return messages.pop(0) if messages else await self.read()

        return replay


def _is_the_proxys(start: Message) -> bool:
    """The service answers errors in JSON, always."""
    headers = dict(start.get("headers", []))
    by_itself = start["status"] in (_TIMED_OUT, _LOST, _UNAVAILABLE)
    return by_itself and not headers.get(b"content-type", b"").startswith(b"application/")
