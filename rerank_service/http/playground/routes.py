"""The playground at `/`: static files, read once. The content security policy allows no other host.

The page uses the public API like any client, so this module needs no models, keys or rankings.
"""

import hashlib
from importlib import resources
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

__all__ = ["playground_routes"]

_PAGE = "index.html"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Kinds of files that belong to the page; no other file of the folder is served."""
_HEADERS = {
    # With `require-trusted-types-for`, the browser itself refuses to turn a passage into HTML.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # cached, but revalidated each time: a rolling update must not mix two versions
}


def playground_routes() -> list[BaseRoute]:
    """Routes of the page. The OpenAPI document does not list them, because they are not part of the API."""
    files = []
    for file in sorted(resources.files(__package__).iterdir(), key=lambda file: file.name):
        kind = _MEDIA_TYPES.get(PurePosixPath(file.name).suffix)
        if kind is not None:
            path = "/" if file.name == _PAGE else f"/playground/{file.name}"
            files.append(_file_route(path, file.read_bytes(), kind))
    return [*files, _BarePrefix()]


def _file_route(path: str, content: bytes, media_type: str) -> Route:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = _HEADERS | {"ETag": etag}

    async def serve(request: Request) -> Response:
        if _is_current(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return Route(path, serve)


def _is_current(if_none_match: str, etag: str) -> bool:
    """Whether the browser's copy is current. By RFC 9110, 13.1.2, `if_none_match` is a list of weakly compared tags, or
    `*`."""
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in if_none_match.split(","))


class _BarePrefix(BaseRoute):
    """Redirects `/prefix` to `/prefix/`, because the page's relative URLs do not resolve from `/prefix`."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        is_get = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        is_bare = is_get and scope["path"] == scope.get("root_path")
        return (Match.FULL if is_bare else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The URL is relative because a reverse proxy may add its own prefix.
        last = scope["path"].rsplit("/", 1)[-1]
        await RedirectResponse(f"./{last}/")(scope, receive, send)
