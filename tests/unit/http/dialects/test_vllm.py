"""vLLM's API: several queries, single documents, and truncation to a number of tokens."""

import asyncio
from typing import Any

import httpx
import pytest

from rerank_service.config import ModelConfig
from rerank_service.errors import QueueFull
from rerank_service.messages import Shard, ShardScores
from tests.local_service import LocalReplica
from tests.unit.http.dialects.forms import (
    LONG,
    QUERY,
    TEXTS,
    WINDOW_TOKENS,
    ask,
    places,
    scores_by_index,
    serving,
)


async def test_top_n_of_zero_means_all_for_vllm_and_is_refused_by_cohere(client: httpx.AsyncClient) -> None:
    assert len(places((await ask(client, "vllm", top_n=0)).json())) == 3
    assert (await ask(client, "cohere v2", top_n=0)).status_code == 400


async def test_vllm_truncates_a_long_document_on_request(client: httpx.AsyncClient) -> None:
    assert (await ask(client, "vllm", documents=[LONG], truncate_prompt_tokens=-1)).status_code == 200


async def test_pairs_of_several_queries_keep_their_indices(client: httpx.AsyncClient) -> None:
    queries = ["which way?", QUERY, "which way?"]
    alone = [
        (await client.post("/score", json={"text_1": query, "text_2": text})).json()["data"][0]["score"]
        for query, text in zip(queries, TEXTS, strict=True)
    ]

    answer = (await client.post("/score", json={"queries": queries, "items": TEXTS})).json()

    assert [place["score"] for place in answer["data"]] == pytest.approx(alone, abs=1e-6)
    assert [place["index"] for place in answer["data"]] == [0, 1, 2]
    assert answer["usage"]["total_tokens"] > 0


async def test_vllm_accepts_a_single_document(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS[0]})).json()
    assert [place["document"] for place in answer["results"]] == [{"text": TEXTS[0]}]


async def test_vllm_truncates_the_document_to_the_prompts_tokens(client: httpx.AsyncClient) -> None:
    async def answer(**changes: Any) -> httpx.Response:
        response = await ask(client, "vllm", **changes)
        assert response.status_code == 200, response.text
        return response

    words = "one two three four five six seven eight nine ten"
    whole = await answer(documents=[words])
    num_tokens = whole.json()["usage"]["total_tokens"]
    exact = await answer(documents=[words], truncate_prompt_tokens=num_tokens)
    cut = await answer(documents=[words], truncate_prompt_tokens=num_tokens - 3)
    num_own = num_tokens - (await answer(documents=[""])).json()["usage"]["total_tokens"]
    start = await answer(documents=[words], max_tokens_per_doc=num_own - 3)
    left = await answer(documents=[words], truncate_prompt_tokens=num_tokens - 3, truncation_side="left")
    tiny = await answer(documents=[words], truncate_prompt_tokens=1)

    assert scores_by_index(exact) == scores_by_index(whole)
    assert scores_by_index(cut) == scores_by_index(start) != scores_by_index(left)
    assert [one.headers["x-rerank-truncated-passages"] for one in (whole, exact, cut, left, tiny)] == list("00111")
    assert cut.json()["usage"]["total_tokens"] == num_tokens - 3
    assert tiny.json()["usage"]["total_tokens"] == num_tokens - num_own + 1
    huge = await answer(documents=[LONG], truncate_prompt_tokens=5000)
    assert huge.json()["usage"]["total_tokens"] == WINDOW_TOKENS


async def test_all_queries_of_a_request_share_one_request_id(model: ModelConfig) -> None:
    replica, seen = LocalReplica(model), set()

    class Watching:
        def remote(self, shard: Any) -> Any:
            seen.add((shard.query, shard.request_id))
            return replica.remote(shard)

    async with serving(model, Watching()) as client:
        await client.post("/score", json={"text_1": ["a", "b"], "text_2": ["c", "d"]})

    of_the_request = {query: request_id for query, request_id in seen if query in ("a", "b")}
    assert set(of_the_request) == {"a", "b"}
    assert len(set(of_the_request.values())) == 1


async def test_a_failed_query_cancels_the_others_and_its_error_is_the_answer(model: ModelConfig) -> None:
    class FailingOnce:
        """Fails for the query `a` once the query `b` has arrived, and never answers `b`."""

        def __init__(self) -> None:
            self.has_arrived = asyncio.Event()
            self.pending: asyncio.Future[ShardScores] = asyncio.get_running_loop().create_future()

        def remote(self, shard: Shard) -> "asyncio.Future[ShardScores]":
            if shard.query == "b":
                self.has_arrived.set()
                return self.pending
            return asyncio.ensure_future(self.fail())

        async def fail(self) -> ShardScores:
            await self.has_arrived.wait()
            raise QueueFull(10, 9)

    replica = FailingOnce()
    async with serving(model, replica) as client:
        response = await client.post("/score", json={"text_1": ["a", "b"], "text_2": ["c", "d"]})

    assert (response.status_code, response.json()["error"]["code"]) == (503, 503)
    assert replica.pending.cancelled()


async def test_vllms_param_is_null_for_a_header(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/score", json={}, headers={"x-request-timeout-seconds": "soon"})).json()
    assert "x-request-timeout-seconds" in answer["error"]["message"]
    assert answer["error"]["param"] is None
