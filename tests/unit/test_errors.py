"""Every error survives pickling, and its envelope has every field."""

import inspect
import json
import pickle
from typing import Any

import pytest

from rerank_service import errors
from rerank_service.errors import FieldProblem, RerankError
from rerank_service.http.envelope import error_response

EXAMPLES = [
    RerankError(),
    errors.InvalidRequest([FieldProblem(("body", "query"), "query is required", "missing")]),
    errors.PairTooLong(3, 9000, 8192),
    errors.QueryTooLong(3, 9000, 8192),
    errors.InvalidApiKey(True),
    errors.InvalidApiKey(False),
    errors.UnknownModel("x", ["a", "b"]),
    errors.BodyTooLarge(10),
    errors.RequestTooLarge(5000, 4096),
    errors.RateLimited("passages", 1000, 7),
    errors.UnsupportedMediaType("Content-Type", "text/plain", "send JSON"),
    errors.QueueFull(5, 4, 1),
    errors.WaitTooLong(70.5, 60.0, 12.0, False, 12),
    errors.ReplicaUnavailable("m"),
    errors.RequestTimedOut(60.0),
    errors.NonFiniteLogit(2),
    errors.EngineFailed("RuntimeError"),
    errors.DeviceFailed("AcceleratorError: CUDA error: an illegal memory access was encountered"),
    errors.DeviceMemoryExhausted(8192),
]


def test_there_is_an_example_of_every_error() -> None:
    public = [getattr(errors, name) for name in errors.__all__]
    classes = {item for item in public if inspect.isclass(item) and issubclass(item, RerankError)}
    assert {type(example) for example in EXAMPLES} == classes


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_pickling_keeps_every_field(error: RerankError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(copy), copy.args, copy.message, copy.problems) == (
        type(error),
        error.args,
        error.message,
        error.problems,
    )
    assert str(copy) == error.message


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_has_a_message_a_status_and_a_problem(error: RerankError) -> None:
    assert error.message
    assert 400 <= error.http_status < 600
    assert error.problems
    for problem in error.problems:
        assert problem.message
        assert problem.code
    assert (error.retry_after_s is not None) == (error.http_status in (429, 503))


def test_the_error_for_a_long_pair_has_the_words_that_clients_match() -> None:
    assert str(errors.PairTooLong(0, 9000, 8192)).startswith(
        "Input length 9000 exceeds maximum allowed token size 8192"
    )


ENVELOPES: list[tuple[int, str, list[str | int], str, str]] = [
    (
        500,
        "api_error",
        [],
        "internal_error",
        "The service failed to answer this request; the service's log has the details",
    ),
    (400, "invalid_request_error", ["body", "query"], "missing", "query is required"),
    (
        400,
        "invalid_request_error",
        ["body", "passages", 3, "text"],
        "pair_too_long",
        "Input length 9000 exceeds maximum allowed token size 8192 (query.text with passages[3].text); "
        "shorten the input, or send truncate: END",
    ),
    (
        400,
        "invalid_request_error",
        ["body", "query", "text"],
        "query_too_long",
        "Input length 9000 exceeds maximum allowed token size 8192 (query.text with the model's prompt, without any "
        "passage); shorten the query",
    ),
    (
        401,
        "authentication_error",
        ["header", "authorization"],
        "invalid_api_key",
        "Missing API key: send the header 'Authorization: Bearer <key>' with a valid key",
    ),
    (
        401,
        "authentication_error",
        ["header", "authorization"],
        "invalid_api_key",
        "Invalid API key: send the header 'Authorization: Bearer <key>' with a valid key",
    ),
    (
        404,
        "not_found_error",
        ["body", "model"],
        "model_not_found",
        "Unknown model 'x'; this service has: a, b. Send one of these names, or add the name to models[].aliases",
    ),
    (
        413,
        "invalid_request_error",
        ["body"],
        "body_too_large",
        "The body is larger than the limit of 10 bytes (limits.max_body_bytes); split it into smaller requests",
    ),
    (
        413,
        "invalid_request_error",
        ["body", "passages"],
        "request_too_large",
        "The request has about 5000 tokens, more than the limit of 4096 (batching.max_queued_tokens); "
        "split passages over several requests",
    ),
    (
        429,
        "rate_limit_error",
        [],
        "rate_limited",
        "The quota of 1000 passages per minute is exhausted; retry after 7 s",
    ),
    (
        415,
        "invalid_request_error",
        ["header", "content-type"],
        "unsupported_media_type",
        "Content-Type is 'text/plain'; send JSON",
    ),
    (
        503,
        "overloaded_error",
        [],
        "queue_full",
        "The queue is full: 5 tokens are queued, and the limit is 4 (batching.max_queued_tokens); retry after 1 s",
    ),
    (
        503,
        "overloaded_error",
        [],
        "wait_too_long",
        "The backlog is too long: this request would take an estimated 70.5 s. The time left until its "
        "deadline is 60 s, of which 12 s is reserved in case the device slows down; retry after 12 s",
    ),
    (
        503,
        "overloaded_error",
        [],
        "replica_unavailable",
        "No replica of 'm' could finish the request; retry after 1 s",
    ),
    (
        504,
        "timeout_error",
        [],
        "request_timed_out",
        "The request did not finish within 60 s and was dropped; send fewer passages, or try again later",
    ),
    (
        500,
        "api_error",
        [],
        "non_finite_logit",
        "The model returned NaN or infinity for 2 pair(s) of this request; "
        "ask the operator to set engine.dtype: float32",
    ),
    (
        500,
        "api_error",
        [],
        "engine_failed",
        "The model failed on this request (RuntimeError); the replica's log has the details",
    ),
    (
        503,
        "overloaded_error",
        [],
        "device_failed",
        "The device of a replica failed (AcceleratorError: CUDA error: an illegal memory access was encountered), "
        "and the replica is being replaced; retry after 5 s",
    ),
    (
        500,
        "api_error",
        [],
        "device_memory_exhausted",
        "A pair of 8192 tokens does not fit in the device's memory; "
        "shorten the pair, or ask the operator to lower window_tokens",
    ),
]


@pytest.mark.parametrize(("error", "expected"), list(zip(EXAMPLES, ENVELOPES, strict=True)))
def test_every_error_has_its_exact_envelope(error: RerankError, expected: Any) -> None:
    status, category, loc, code, message = expected

    response = error_response(error)

    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers.get("retry-after") == {
        "queue_full": "1",
        "replica_unavailable": "1",
        "wait_too_long": "12",
        "rate_limited": "7",
        "device_failed": "5",
    }.get(code)
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert json.loads(response.body) == {
        "object": "error",
        "message": message,
        "detail": [{"loc": loc, "msg": message, "type": code}],
        "type": category,
    }
