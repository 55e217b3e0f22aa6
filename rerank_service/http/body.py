"""Reads a request's body within its limit."""

from fastapi import Request

from rerank_service.errors import BodyTooLarge, UnsupportedMediaType

__all__ = ["read_json_body"]


async def read_json_body(request: Request, max_bytes: int) -> bytes:
    """The body, at most `max_bytes`, announced as JSON or not announced at all.

    Raises `UnsupportedMediaType`, and `BodyTooLarge` as soon as the limit is passed, whatever Content-Length
    says or whether there is one.
    """
    _check_content_type(request.headers.get("content-type", ""))
    _check_encoding(request.headers.get("content-encoding", ""))
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise BodyTooLarge(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLarge(max_bytes)
    return bytes(body)


def _check_content_type(header: str) -> None:
    media_type = header.partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if media_type and not is_json:
        raise UnsupportedMediaType("Content-Type", media_type, "send 'Content-Type: application/json'")


def _check_encoding(header: str) -> None:
    encoding = header.strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType("Content-Encoding", encoding, "send the body uncompressed")
