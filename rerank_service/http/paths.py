"""Tolerates superfluous slashes in paths.

A base URL that ends with a slash, and a client that appends `/v1/rerank` or `rerank/` to it, give paths such as
`//v1/rerank`, `/v1//rerank` and `/v1/rerank/`.
"""

import re

from starlette.routing import Router
from starlette.types import Receive, Scope, Send

__all__ = ["SecondLook", "without_extra_slashes"]

_SLASHES = re.compile("/{2,}")


def without_extra_slashes(path: str) -> str:
    """The path with single slashes, and without a slash at its end."""
    return _SLASHES.sub("/", path).rstrip("/") or "/"


class SecondLook:
    """ASGI application for paths that no route has. It looks once more for a route, without superfluous slashes.

    Well-formed paths, which are the usual case, do not get here, so that they cost nothing.
    """

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "")
        # Uvicorn and Serve include the prefix of a mounted application in the path.
        path = scope["path"]
        prefix = root if path.startswith(f"{root}/") else ""
        cleaned = prefix + without_extra_slashes(path.removeprefix(prefix))
        if scope["type"] == "http" and cleaned != path:
            return await self._router({**scope, "path": cleaned}, receive, send)
        return await self._router.not_found(scope, receive, send)
