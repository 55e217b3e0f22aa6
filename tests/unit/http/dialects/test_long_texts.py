"""Long texts in all APIs: truncated or refused, and counted."""

import asyncio
from typing import Any

import httpx
import pytest

from rerank_service.config import ModelConfig
from rerank_service.http.dialects.call import probability
from rerank_service.messages import Shard, ShardScores
from tests.unit.http.dialects.forms import (
    ALL_FORMS,
    LONG,
    LOSS_BODIES,
    MODEL,
    WINDOW_TOKENS,
    ask,
    logits_of,
    message_of,
    places,
    score_of,
    serving,
)

TRUNCATING = ["jina", "cohere v1", "cohere v2", "tei", "infinity", "voyage"]
REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("tei", {"texts": ["short", LONG], "truncate": False}, 413, "(query with texts[1]); shorten the input, or send "
     "truncate: true"),
    ("voyage", {"documents": ["short", LONG], "truncation": False}, 400, "or send truncation: true"),
    ("jina", {"documents": ["short", LONG], "truncation": False, "top_n": 1}, 400, "(query with documents[1]); shorten "
     "the input, or send truncation: true"),
    ("vllm", {"documents": ["short", LONG]}, 400, "(query with documents[1]); shorten the input, or send "
     "truncate_prompt_tokens: -1"),
    ("vllm score", {"text_1": ["a", "b"], "text_2": ["short", LONG]}, 400, "(text_1[1] with text_2[1])"),
    ("tei", {"query": LONG, "truncate": False}, 413, "(query with the model's prompt"),
    ("voyage", {"query": LONG, "truncation": False}, 400, "(query with the model's prompt"),
    ("vllm score", {"text_1": ["a", LONG], "text_2": ["a", "b"]}, 400, "(text_1[1] with the model's prompt"),
]  # fmt: skip


@pytest.mark.parametrize("name", TRUNCATING)
async def test_long_documents_are_truncated_by_default(client: httpx.AsyncClient, name: str) -> None:
    field = "texts" if name == "tei" else "documents"
    assert (await ask(client, name, **{field: ["short", LONG]})).status_code == 200


@pytest.mark.parametrize(("name", "changes", "status", "message"), REFUSED)
async def test_the_refusal_of_a_long_text_names_the_field_to_change(
    client: httpx.AsyncClient, name: str, changes: dict[str, Any], status: int, message: str
) -> None:
    response = await ask(client, name, **changes)

    assert response.status_code == status
    assert f"exceeds maximum allowed token size {WINDOW_TOKENS}" in message_of(response.json())
    assert message in message_of(response.json())


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("jina", "max_doc_length"),
        *((name, "max_tokens_per_doc") for name in ("jina", "cohere v1", "cohere v2", "vllm")),
    ],
)
async def test_a_document_is_truncated_to_its_own_limit(client: httpx.AsyncClient, name: str, field: str) -> None:
    words = "one two three four five six seven eight nine ten"
    path, body = ALL_FORMS[name]

    cut = (await client.post(path, json=body | {"documents": [words], field: 4})).json()
    whole = (await client.post(path, json=body | {"documents": [words], field: 400})).json()

    assert score_of(places(whole)[0]) == pytest.approx(probability((await logits_of(client, [words]))[0]), abs=1e-6)
    assert score_of(places(cut)[0]) != score_of(places(whole)[0])


@pytest.mark.parametrize("name", ALL_FORMS)
@pytest.mark.parametrize("truncate", ["END", "NONE"])
async def test_the_configuration_decides_what_happens_to_long_texts(
    model: ModelConfig, name: str, truncate: str
) -> None:
    path, _ = ALL_FORMS[name]
    field = {"tei": "texts", "vllm score": "text_2"}.get(name, "documents")
    silent = {"truncation": None, "truncate": None}
    settings: list[dict[str, Any]] = [
        {"limits": {"truncate": truncate}},
        {"limits": {"truncate": "NONE"}, "paths": {path: {"truncate": truncate}}},
    ]
    for one in settings:
        async with serving(model, **one) as client:
            changes = silent | {field: ["short", LONG, "short"], "top_k": 3 if name == "voyage" else None}
            response = await ask(client, name, **changes)
        assert (response.status_code == 200) == (truncate == "END"), response.text
        if truncate == "NONE":
            assert "exceeds maximum allowed token size" in message_of(response.json())
            assert not message_of(response.json()).endswith("send ")


class _Truncating:
    """Truncates passages that begin with A, and scores no token of passages that begin with P."""

    def remote(self, shard: Shard) -> "asyncio.Task[ShardScores]":
        unscored = tuple(text.startswith("P") for text in shard.passages)
        cut = tuple(text[0] in "PA" for text in shard.passages)
        count = len(shard.passages)
        scores = ShardScores((1.0,) * count, (9,) * count, cut, unscored, 0.0, 0.0, 0.0)

        async def score() -> ShardScores:
            return scores

        return asyncio.ensure_future(score())


@pytest.mark.parametrize("name", LOSS_BODIES)
async def test_every_answer_counts_truncated_and_unscored_passages(model: ModelConfig, name: str) -> None:
    path, body = LOSS_BODIES[name]
    async with serving(model, _Truncating()) as client:
        response = await client.post(path, json=body)
        metrics = (await client.get("/metrics")).text

    num_copies = 2 if name == "nim" else 1  # a repeated passage is scored once, but counted each time
    assert response.status_code == 200
    assert response.headers["x-rerank-truncated-passages"] == str(num_copies + 1)
    assert response.headers["x-rerank-unscored-passages"] == str(num_copies)
    assert f'rerank_unscored_pairs_total{{model="{MODEL}"}} {num_copies}.0' in metrics
    assert f'rerank_truncated_pairs_total{{model="{MODEL}"}} {num_copies + 1}.0' in metrics


@pytest.mark.parametrize("name", LOSS_BODIES)
async def test_the_counts_are_zero_if_everything_fits(client: httpx.AsyncClient, name: str) -> None:
    path, body = LOSS_BODIES[name]
    headers = (await client.post(path, json=body)).headers
    assert [headers[f"x-rerank-{what}-passages"] for what in ("truncated", "unscored")] == ["0", "0"]


async def test_openapi_describes_the_counts_on_every_ranking_route(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    ranking = [operation["post"] for operation in paths.values() if "post" in operation]
    assert len(ranking) == 3 + len({path for path, _ in ALL_FORMS.values()})
    for operation in ranking:
        headers = operation["responses"]["200"]["headers"]
        counts = {"x-rerank-truncated-passages", "x-rerank-unscored-passages"}
        assert set(headers) == counts | {"x-ignored-fields", "x-model", "x-rerank-stages"}
        assert all(headers[name]["schema"] == {"type": "integer", "minimum": 0} for name in counts)
