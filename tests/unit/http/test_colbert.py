"""A ColBERT model over HTTP: pylate's scores are the logits, windows and explanations work."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from rerank_service.config import ModelConfig
from tests.colbert import CASES, PASSAGES, QUERIES, RECORDED, make
from tests.contract import assert_valid_response
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import local_model

NAME = "modernbert"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return local_model(make(tmp_path_factory.mktemp("colbert") / NAME, CASES[NAME]))


@pytest.fixture
async def client(model: ModelConfig) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(local_api((model,), {model.id: LocalReplica(model)})) as client:
        yield client


def body(model: ModelConfig, query: str, passages: list[str], **more: Any) -> dict[str, Any]:
    return {"model": model.id, "query": {"text": query}, "passages": [{"text": text} for text in passages], **more}


async def test_logits_are_the_scores_of_pylate(client: httpx.AsyncClient, model: ModelConfig) -> None:
    recorded = json.loads(RECORDED.read_text())["cases"][NAME]
    for query, scores in zip(QUERIES, recorded["scores"], strict=True):
        answer = (await client.post("/v1/ranking", json=body(model, query, PASSAGES))).json()

        assert_valid_response(answer, len(PASSAGES))
        found = {one["index"]: one["logit"] for one in answer["rankings"]}
        assert [found[index] for index in range(len(PASSAGES))] == pytest.approx(scores, abs=1e-5)
        tokens = [len(ids) for ids in recorded["document"]["ids"]]
        assert answer["usage"]["prompt_tokens"] == sum(tokens) + 48 * len(tokens)  # mask tokens included


async def test_a_long_passage_is_ranked_by_its_best_window(client: httpx.AsyncClient, model: ModelConfig) -> None:
    padding = "The train leaves at noon. " * 12
    texts = [padding + PASSAGES[0], padding]
    options = {"passage_windows": {"max_per_passage": 16}, "explain": {"top_n": 1}}
    response = await client.post("/v1/ranking", json=body(model, QUERIES[0], texts, **options))
    assert response.status_code == 200, response.text
    answer = response.json()
    plain = (await client.post("/v1/ranking", json=body(model, QUERIES[0], texts))).json()

    best, other = ({one["index"]: one["logit"] for one in found["rankings"]}[0] for found in (answer, plain))
    assert answer["rankings"][0]["index"] == 0
    assert best > other + 0.01  # the end of the passage is not cut off
    places = [match["passage"] for match in answer["explanations"][0]["matches"] if match["passage"]]
    assert places
    assert all(0 <= place["start"] < place["end"] <= len(texts[0]) for place in places)
