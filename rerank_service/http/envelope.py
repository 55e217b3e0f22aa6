"""Error responses. The default form is the JSON of NVIDIA's API, which every known client can parse."""

import logging
import re
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from rerank_service.errors import FieldProblem, InvalidRequest, RateLimited, RerankError
from rerank_service.http.dialects import NIM, Dialect
from rerank_service.http.dialects.nim import ErrorDetail, ErrorEnvelope

__all__ = ["add_error_handlers", "error_response", "rate_limit_headers"]

logger = logging.getLogger(__name__)

_LOGGED_PATH = re.compile(r"[\w./-]{1,100}", re.ASCII)


def add_error_handlers(api: FastAPI, ranking_paths: Sequence[str]) -> None:
    """Adds handlers for this service's errors, FastAPI's errors and unexpected errors. The answer to a POST without a
    route lists the `ranking_paths`, because many clients append their own path to the configured address."""
    *paths, last = ranking_paths
    rankings_are_at = f"rankings are at {', '.join(paths)} and {last}" if paths else f"rankings are at {last}"
    api.add_exception_handler(RerankError, _on_rerank_error)
    api.add_exception_handler(HTTPException, partial(_on_http_exception, rankings_are_at))
    api.add_exception_handler(RequestValidationError, _on_validation_error)
    api.add_exception_handler(Exception, _on_unexpected_error)


def error_response(error: RerankError, dialect: Dialect = NIM) -> Response:
    """The response for one of this service's errors, in the form of `dialect`."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RateLimited):
        headers |= rate_limit_headers(error.what, error.per_minute, 0, error.retry_after_s)
    refusal = dialect.refuse(error)
    return Response(refusal.body.model_dump_json(), refusal.status, headers, media_type="application/json")


def rate_limit_headers(what: str, per_minute: int, remaining: int, reset_s: int) -> dict[str, str]:
    """`X-RateLimit-*` headers; `what` is `requests` or `passages`."""
    figures = {"Limit": per_minute, "Remaining": remaining, "Reset": reset_s}
    return {f"X-RateLimit-{name}-{what.title()}": str(figure) for name, figure in figures.items()}


async def _on_rerank_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RerankError)  # noqa: S101 - registered for this class
    return error_response(error)


async def _on_http_exception(rankings_are_at: str, request: Request, error: Exception) -> Response:
    """Answers the framework's errors: 404, 405 and others."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class
    path = request.url.path[:200]
    message, category, headers = str(error.detail), "invalid_request_error", dict(error.headers or {})
    where = "the API is described at /docs"
    if request.method == "POST":
        where = f"{rankings_are_at}, and {where}"
        _log_wrong_address(path, error.status_code)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message, category = f"There is no route {path}; {where}", "not_found_error"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        methods = set(headers.get("Allow", "").split(", "))
        headers["Allow"] = allowed = ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
        message = f"{request.method[:20]} is not allowed on {path}; use {allowed}"
        message += f"; {where}" if request.method == "POST" else ""
    problem = ErrorDetail(loc=("path",), msg=message, type=HTTPStatus(error.status_code).name.lower())
    body = ErrorEnvelope(message=message, detail=(problem,), type=category).model_dump_json()
    return Response(body, error.status_code, headers, media_type="application/json")


def _log_wrong_address(path: str, status: int) -> None:
    """Logs a line like those of the access log, without a path that may contain a user's text."""
    fields = {"status": status, "code": "no_route", "path": path if _LOGGED_PATH.fullmatch(path) else "other"}
    line = " ".join(f"{name}={value}" for name, value in fields.items())
    logger.info("request %s", line, extra=fields)


async def _on_validation_error(_: Request, error: Exception) -> Response:
    """Answers invalid path or query parameters. The dialects validate the bodies."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class
    problems = [
        FieldProblem(tuple(problem["loc"]), f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}", problem["type"])
        for problem in error.errors()
    ]
    return error_response(InvalidRequest(problems))


async def _on_unexpected_error(_: Request, error: Exception) -> Response:
    logger.error("unexpected error type=%s", type(error).__name__, exc_info=error)
    return error_response(RerankError())
