"""Middleware for Serve's proxies: keeps request headers from controlling the proxy, and retries lost requests.

Serve's proxy acts on some request headers. With these headers, a client could turn off the proxy's timeout, cause the
proxy's plain-text 408 instead of the service's 504, or keep the service working after the client disconnects. Serve
calls `proxy_middlewares` in every proxy if the environment variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names
this function on all nodes; `rerank-service serve` and `make serve` set the variable.
"""

import os

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from rerank_service.http.proxies.retry import RetryLostIngress

__all__ = ["FORWARDED_TIMEOUT_HEADER", "IMPORT_PATH", "TIMEOUT_HEADER", "DefuseHeaders", "proxy_middlewares"]

IMPORT_PATH = f"{__name__}:proxy_middlewares"

TIMEOUT_HEADER = "x-request-timeout-seconds"
"""Header with a client's own time limit, which can shorten the service's limit but never lengthen it."""
FORWARDED_TIMEOUT_HEADER = "x-rerank-timeout-seconds"
"""Header in which the proxy forwards the client's time limit to the ingress."""

_TIMEOUT = TIMEOUT_HEADER.encode()
_FORWARDED_TIMEOUT = FORWARDED_TIMEOUT_HEADER.encode()
_DISCONNECT_DISABLED = b"x-request-disconnect-disabled"
_REQUEST_ID = b"x-request-id"
_MAX_REQUEST_ID_BYTES = 128


class DefuseHeaders:
    """ASGI middleware that renames the timeout header, so that only the ingress applies it, and drops other harmful
    headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = []
            for name, value in scope["headers"]:
                if name == _TIMEOUT:
                    headers.append((_FORWARDED_TIMEOUT, value))
                elif name in (_DISCONNECT_DISABLED, _FORWARDED_TIMEOUT):
                    continue  # only this middleware may set the forwarded timeout
                elif name != _REQUEST_ID or _is_loggable(value):  # Serve generates an id for a request without one
                    headers.append((name, value))
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


def _is_loggable(request_id: bytes) -> bool:
    """Request ids are echoed and logged, so they must be short and printable ASCII."""
    is_short = len(request_id) <= _MAX_REQUEST_ID_BYTES
    return is_short and request_id.isascii() and request_id.decode("ascii").isprintable()


def proxy_middlewares() -> list[Middleware]:
    """Middleware for Serve's own proxies. Under HAProxy, the middleware runs in the ingresses, and HAProxy performs the
    retries."""
    defuse = Middleware(DefuseHeaders)
    return [defuse] if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else [Middleware(RetryLostIngress), defuse]
