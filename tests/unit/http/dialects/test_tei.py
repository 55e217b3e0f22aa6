"""The API of text-embeddings-inference: its bare list, the ignored model, and truncation at the left."""

from typing import Any

import httpx

from tests.unit.http.dialects.forms import MODEL, TEI, TEXTS, ask, scores_by_index


async def test_tei_answers_a_bare_list(client: httpx.AsyncClient) -> None:
    answer = (await ask(client, "tei")).json()
    assert isinstance(answer, list)
    assert all(set(place) == {"index", "score"} for place in answer)


async def test_tei_ignores_the_model(client: httpx.AsyncClient) -> None:
    for path in ("/rerank", "/v1/rerank"):
        response = await client.post(path, json=TEI | {"model": "nope"})
        assert (response.status_code, response.headers["x-model"]) == (200, MODEL)
        assert scores_by_index(response) == scores_by_index(await ask(client, "tei"))


async def test_left_truncation_keeps_the_end(client: httpx.AsyncClient) -> None:
    text = "first " * 100 + TEXTS[0]
    requests: list[tuple[str, dict[str, Any]]] = [
        ("tei", {"texts": [text], "truncation_direction": "Left", "raw_scores": True}),
        ("tei", {"texts": [text], "truncation_direction": "Right", "raw_scores": True}),
        ("tei", {"texts": ["first " * 100], "raw_scores": True}),
    ]
    left, right, same = [await ask(client, name, **changes) for name, changes in requests]

    assert left.headers["x-rerank-truncated-passages"] == "1"
    assert scores_by_index(right) == scores_by_index(same)
    assert scores_by_index(left) != scores_by_index(right)
    short = {"texts": TEXTS, "truncation_direction": "left"}
    assert scores_by_index(await ask(client, "tei", **short)) == scores_by_index(await ask(client, "tei"))
