"""The ranking API's contract as handwritten JSON Schema, with which the service's own schemas are compared. It must not
import the service: only two independent statements of a contract can test each other.
"""

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

__all__ = [
    "ERROR_ENVELOPE",
    "RANKING_RESPONSE",
    "SEED_RANKING_REQUEST",
    "SEED_RANKING_RESPONSE",
    "assert_valid_error",
    "assert_valid_request",
    "assert_valid_response",
]

_TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}

SEED_RANKING_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["model", "query", "passages"],
    "properties": {
        "model": {"type": "string"},
        "query": _TEXT,
        "passages": {"type": "array", "items": _TEXT},
        "truncate": {"type": "string", "enum": ["NONE", "END"], "default": "END"},
    },
}
"""RankingRequest of the published OpenAPI document."""

SEED_RANKING_RESPONSE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "rankings": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"index": {"type": "integer"}, "logit": {"type": "number"}},
            },
        },
    },
}
"""RankingResponse of the published OpenAPI document."""

_COUNT = {"type": "integer", "minimum": 1}

RANKING_RESPONSE: dict[str, Any] = {
    "type": "object",
    "required": ["rankings", "usage"],  # clients ignore further top-level keys
    "properties": {
        "rankings": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["index", "logit"],
                "additionalProperties": False,  # Elasticsearch refuses any other key in this object
                "properties": {"index": {"type": "integer", "minimum": 0}, "logit": {"type": "number"}},
            },
        },
        "usage": {
            "type": "object",
            "required": ["prompt_tokens", "total_tokens"],
            "additionalProperties": False,
            "properties": {"prompt_tokens": _COUNT, "total_tokens": _COUNT},
        },
    },
}
"""Requirements of known clients beyond the published schema."""

ERROR_ENVELOPE: dict[str, Any] = {
    "type": "object",
    "required": ["object", "message", "detail", "type"],
    "additionalProperties": False,
    "properties": {
        "object": {"const": "error"},
        "message": {"type": "string", "minLength": 1},
        "detail": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["loc", "msg", "type"],
                "additionalProperties": False,
                "properties": {
                    "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                    "msg": {"type": "string", "minLength": 1},
                    "type": {"type": "string", "minLength": 1},
                },
            },
        },
        "type": {"type": "string", "pattern": "_error$"},
    },
}
"""The body of every error."""


def assert_valid_request(body: Any) -> None:
    """Checks that the body matches the published schema of a request."""
    _assert_valid(SEED_RANKING_REQUEST, body)


def assert_valid_response(body: Any, num_passages: int) -> None:
    """Checks that the body matches the schema and has every passage once, by descending logit, with ties in the
    request's order."""
    _assert_valid(SEED_RANKING_RESPONSE, body)
    _assert_valid(RANKING_RESPONSE, body)
    places = [(-ranking["logit"], ranking["index"]) for ranking in body["rankings"]]
    assert places == sorted(places)
    assert sorted(index for _, index in places) == list(range(num_passages))
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"]


def assert_valid_error(body: Any) -> None:
    """Checks that the body is the error envelope."""
    _assert_valid(ERROR_ENVELOPE, body)


def _assert_valid(schema: Mapping[str, Any], body: Any) -> None:
    Draft202012Validator(schema).validate(body)
