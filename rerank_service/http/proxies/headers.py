"""What runs inside Serve's proxies: request headers that they would act on are defused, lost requests asked again.

With those headers a client could turn off the proxy's timeout, get its plain-text 408 instead of our 504, or keep the
service working for somebody who has left. Serve calls `proxy_middlewares` in every proxy if the environment variable
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it on all nodes; `rerank-service serve` and `make serve` set it.
"""

import os

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from rerank_service.http.deadline import FORWARDED_TIMEOUT_HEADER, TIMEOUT_HEADER
from rerank_service.http.proxies.retry import RetryLostIngress

__all__ = ["IMPORT_PATH", "DefuseHeaders", "proxy_middlewares"]

IMPORT_PATH = f"{__name__}:proxy_middlewares"

_TIMEOUT = TIMEOUT_HEADER.encode()
_FORWARDED_TIMEOUT = FORWARDED_TIMEOUT_HEADER.encode()
_KEEPS_WORKING = b"x-request-disconnect-disabled"
_REQUEST_ID = b"x-request-id"
_LONGEST_REQUEST_ID = 128


class DefuseHeaders:
    """ASGI middleware: renames the timeout, which the ingress applies, and drops the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = [(_FORWARDED_TIMEOUT if name == _TIMEOUT else name, value) for name, value in _kept(scope)]
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


def _kept(scope: Scope) -> list[tuple[bytes, bytes]]:
    """A request id is echoed and logged, so one that is long or not plain is dropped, and Serve makes another."""
    return [
        (name, value)
        for name, value in scope["headers"]
        if name not in (_KEEPS_WORKING, _FORWARDED_TIMEOUT)
        and not (name == _REQUEST_ID and (len(value) > _LONGEST_REQUEST_ID or not _is_plain(value)))
    ]


def _is_plain(value: bytes) -> bool:
    return value.isascii() and value.decode("ascii").isprintable()


def proxy_middlewares() -> list[Middleware]:
    """What Serve's proxies put in front of themselves; under HAProxy, which asks again itself, the ingresses do."""
    defuse = Middleware(DefuseHeaders)
    return [defuse] if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else [Middleware(RetryLostIngress), defuse]
