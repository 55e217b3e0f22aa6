"""Errors name the fields of the body that was sent, in all APIs."""

import asyncio
import re
from typing import Any

import httpx
import pytest

from rerank_service.config import ModelConfig
from rerank_service.errors import RequestTooLarge, dotted
from rerank_service.messages import Shard, ShardScores
from tests.unit.http.dialects.forms import (
    LONG,
    LOSS_BODIES,
    MODEL,
    message_of,
    serving,
)


class _TooLarge:
    """Refuses every request as too large."""

    def remote(self, shard: Shard) -> "asyncio.Task[ShardScores]":
        async def refuse() -> ShardScores:
            raise RequestTooLarge(shard.request_tokens, 10)

        return asyncio.ensure_future(refuse())


LONG_AT_ONE = ["short", LONG]
NAMED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}, {"text": LONG}], "truncate": "NONE"},
     "query.text with passages[1].text"),
    ("/rerank", {"query": "q", "texts": LONG_AT_ONE, "truncate": False}, "query with texts[1]"),
    ("/v1/rerank", {"query": "q", "documents": LONG_AT_ONE, "truncation": False}, "query with documents[1]"),
    ("/rerank", {"query": "q", "documents": LONG_AT_ONE}, "query with documents[1]"),
    ("/rerank", {"query": "q", "documents": LONG}, "query with documents"),
    ("/score", {"text_1": "q", "text_2": LONG_AT_ONE}, "text_1 with text_2[1]"),
    ("/score", {"text_1": "q", "text_2": LONG}, "text_1 with text_2"),
    ("/score", {"text_1": ["q"], "text_2": LONG_AT_ONE}, "text_1[0] with text_2[1]"),
    ("/v1/score", {"queries": ["a", "b", "a"], "documents": ["x", "y", LONG]}, "queries[2] with documents[2]"),
    ("/v1/score", {"queries": ["a"], "items": [{"text": "x"}, {"text": LONG}]}, "queries[0] with items[1]"),
    ("/v1/score", {"data_1": "q", "data_2": LONG_AT_ONE}, "data_1 with data_2[1]"),
    ("/score", {"text_1": "q", "text_2": ["a", 5]}, "text_2[1]"),
    ("/score", {"text_1": "q", "text_2": 5}, "text_2"),
    ("/score", {"text_1": " ", "text_2": "a"}, "text_1"),
    ("/score", {"text_1": ["a", " "], "text_2": ["a", "b"]}, "text_1[1]"),
    ("/score", {"text_1": 5, "text_2": "a"}, "text_1"),
    ("/rerank", {"query": "q", "documents": 5, "use_activation": True}, "documents"),
    ("/v1/rerank", {"query": "q", "documents": ["a", 5]}, "documents[1]"),
    ("/v1/rerank", {"query": {"text": " "}, "documents": ["a"]}, "query"),
    ("/v2/rerank", {"model": MODEL, "query": "q", "documents": ["a"] * 5}, "documents"),
    ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}] * 5}, "passages"),
    ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": 5}]}, "passages[0].text"),
]  # fmt: skip
FIELDS_OF_TEXTS = r"quer(?:y|ies)|passages|documents|texts|items|text_[12]|data_[12]"


def assert_places_exist(body: dict[str, Any], message: str) -> None:
    """Checks that every text field named in the message exists in the body, with its whole path."""
    named = re.findall(rf"\b(?:{FIELDS_OF_TEXTS})(?![\w/])(?:\[\d+\]|\.text\b)*", message)
    for place in named:
        value: Any = body
        for part in re.findall(r"\w+", place):
            value = value[int(part)] if isinstance(value, list) else value[part]


def places_named(answer: Any) -> list[str]:
    """Machine-readable paths in the error, if the dialect has such paths."""
    error, detail = answer.get("error"), answer.get("detail")
    params = [error["param"]] if isinstance(error, dict) and error["param"] else []
    return params + [dotted(tuple(one["loc"][1:])) for one in (detail if isinstance(detail, list) else [])]


@pytest.mark.parametrize(("path", "body", "place"), NAMED)
async def test_an_error_names_the_fields_of_the_callers_body(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], place: str
) -> None:
    answer = (await client.post(path, json=body)).json()

    message = message_of(answer)
    assert re.search(rf"(?<![\w.]){re.escape(place)}(?![\w.\[])", message), message
    assert_places_exist(body, message)
    assert set(places_named(answer)) <= {place.split(" with ")[-1]}


@pytest.mark.parametrize("name", LOSS_BODIES)
async def test_the_error_for_a_too_large_request_names_the_callers_field(model: ModelConfig, name: str) -> None:
    path, body = LOSS_BODIES[name]
    async with serving(model, _TooLarge()) as client:
        answer = (await client.post(path, json=body)).json()

    assert_places_exist(body, message_of(answer))
    assert set(places_named(answer)) <= set(body)
