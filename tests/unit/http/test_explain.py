"""Explanations of rankings, over HTTP, with real engines in this process."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from rerank_service.config import ModelConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.errors import RequestTooLarge
from rerank_service.messages import Shard, ShardScores
from tests.contract import assert_valid_response
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import embedded_model, local_model

QUERY = "What is the capital of France?"
PASSAGES = [
    "Berlin is in Germany. It is large. It has a zoo.",
    "🙂 Lyon is old. Paris is the capital.\nParis is big.",
    "Nice",
    "",
]
ALIGNING, OTHER = "aligning", "other"


class Recorded:
    """A replica that remembers the shards of requests."""

    def __init__(self, model: ModelConfig, engine: Engine[Any]) -> None:
        self._replica = LocalReplica(model, engine)
        self.shards: list[Shard] = []

    def remote(self, shard: Shard) -> Any:
        if shard.query == QUERY:  # not readiness's test pair
            self.shards.append(shard)
        return self._replica.remote(shard)


@pytest.fixture(scope="module")
def models(checkpoints: dict[str, Path]) -> list[ModelConfig]:
    other = local_model(checkpoints["llama_bidirec"], window_tokens=64)
    return [embedded_model().model_copy(update={"id": ALIGNING}), other.model_copy(update={"id": OTHER})]


@pytest.fixture(scope="module")
def engines(models: list[ModelConfig]) -> dict[str, Engine[Any]]:
    return {model.id: load_engine(model) for model in models}


@pytest.fixture
def replicas(models: list[ModelConfig], engines: dict[str, Engine[Any]]) -> dict[str, Recorded]:
    return {model.id: Recorded(model, engines[model.id]) for model in models}


@pytest.fixture
async def client(models: list[ModelConfig], replicas: dict[str, Recorded]) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(local_api(models, replicas)) as c:
        yield c


def body(model: str = ALIGNING, passages: list[str] = PASSAGES, **fields: Any) -> dict[str, Any]:
    return {"model": model, "query": {"text": QUERY}, "passages": [{"text": text} for text in passages], **fields}


def logits_of(answer: dict[str, Any]) -> dict[int, float]:
    return {ranking["index"]: ranking["logit"] for ranking in answer["rankings"]}


@pytest.mark.parametrize("model", [ALIGNING, OTHER])
async def test_explanations_are_an_addition_to_the_same_ranking(client: httpx.AsyncClient, model: str) -> None:
    plain = (await client.post("/v1/ranking", json=body(model))).json()
    null = (await client.post("/v1/ranking", json=body(model, explain=None))).json()
    explained = (await client.post("/v1/ranking", json=body(model, explain={"top_n": 3}))).json()

    assert plain == null
    assert set(plain) == {"rankings", "usage"}
    assert_valid_response(explained, len(PASSAGES))
    assert explained["rankings"] == plain["rankings"]
    assert [one["index"] for one in explained["explanations"]] == [one["index"] for one in plain["rankings"][:3]]
    assert explained["usage"]["total_tokens"] > plain["usage"]["total_tokens"]


async def test_late_interaction_shows_which_tokens_match(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/ranking", json=body(explain={"top_n": 10}))).json()

    best, *_, last = answer["explanations"]
    assert len(answer["explanations"]) == len(PASSAGES)
    assert (best["index"], best["method"], best["is_approximate"]) == (1, "token_alignment", False)
    words = [QUERY[match["query"]["start"] : match["query"]["end"]] for match in best["matches"]]
    assert words == ["What", "is", "the", "capital", "of", "France", "?"]
    capital = best["matches"][3]
    place = capital["passage"]
    assert PASSAGES[1][place["start"] : place["end"]] == "capital"
    assert 0.5 < capital["similarity"] <= 1.0001
    assert last["index"] == 3
    assert all(match["passage"] is None for match in last["matches"])  # an empty passage has only CLS and SEP


async def test_usage_counts_the_explained_pairs_again(client: httpx.AsyncClient) -> None:
    plain = (await client.post("/v1/ranking", json=body())).json()["usage"]["total_tokens"]
    best = (await client.post("/v1/ranking", json=body(passages=[PASSAGES[1]]))).json()["usage"]["total_tokens"]
    explained = (await client.post("/v1/ranking", json=body(explain={"top_n": 1}))).json()["usage"]["total_tokens"]

    assert explained == plain + best


async def test_copies_of_a_passage_have_the_same_explanation(
    client: httpx.AsyncClient, replicas: dict[str, Recorded]
) -> None:
    passages = [PASSAGES[1], PASSAGES[0], PASSAGES[1]]

    answer = (await client.post("/v1/ranking", json=body(passages=passages, explain={"top_n": 3}))).json()

    first, second, _ = answer["explanations"]
    assert [first["index"], second["index"]] == [0, 2]
    assert first["matches"] == second["matches"]
    assert [shard.passages for shard in replicas[ALIGNING].shards if shard.explain] == [(PASSAGES[1], PASSAGES[0])]


async def test_matches_of_a_windowed_passage_count_from_its_start(client: httpx.AsyncClient) -> None:
    filler = "Nothing of interest is written in this sentence. " * 200
    passage = f"{filler}Paris is the capital of France. {filler}"

    answer = await client.post("/v1/ranking", json=body(passages=[passage], explain={"top_n": 1}, passage_windows={}))

    (explanation,) = answer.json()["explanations"]
    place = explanation["matches"][5]["passage"]
    assert passage[place["start"] : place["end"]] == "France"


async def test_other_models_leave_out_one_sentence_at_a_time(client: httpx.AsyncClient) -> None:
    whole = body(OTHER, [PASSAGES[1]])
    without = [
        "Lyon is old. Paris is the capital.\nParis is big.".replace("Lyon is old. ", "", 1),
        "🙂 Lyon is old. Paris is big.",
        "🙂 Lyon is old. Paris is the capital.\n",
    ]
    direct = logits_of((await client.post("/v1/ranking", json=body(OTHER, without))).json())

    answer = (await client.post("/v1/ranking", json=whole | {"explain": {"top_n": 1}})).json()

    (explanation,) = answer["explanations"]
    assert (explanation["index"], explanation["method"]) == (0, "leave_one_sentence_out")
    assert explanation["is_approximate"] is True
    places = [(part["start"], part["end"]) for part in explanation["sentences"]]
    assert [PASSAGES[1][start:end] for start, end in places] == [
        "🙂 Lyon is old.",
        "Paris is the capital.",
        "Paris is big.",
    ]
    (logit,) = logits_of(answer).values()
    contributions = [part["contribution"] for part in explanation["sentences"]]
    assert contributions == pytest.approx([logit - direct[index] for index in range(3)], abs=1e-5)


async def test_a_passage_of_one_sentence_has_nothing_to_compare_with(
    client: httpx.AsyncClient, replicas: dict[str, Recorded]
) -> None:
    passages = ["Only one sentence.", ""]
    plain = (await client.post("/v1/ranking", json=body(OTHER, passages))).json()

    answer = (await client.post("/v1/ranking", json=body(OTHER, passages, explain={"top_n": 2}))).json()

    sentences = {one["index"]: one["sentences"] for one in answer["explanations"]}
    assert sentences == {0: [{"start": 0, "end": 18, "contribution": None}], 1: []}
    assert answer["usage"] == plain["usage"]
    assert len(replicas[OTHER].shards) == 2  # one per request


async def test_a_long_passage_has_at_most_16_parts(client: httpx.AsyncClient, replicas: dict[str, Recorded]) -> None:
    passage = " ".join(f"Sentence {number}." for number in range(40))

    answer = (await client.post("/v1/ranking", json=body(OTHER, [passage], explain={"top_n": 1}))).json()

    (explanation,) = answer["explanations"]
    assert len(explanation["sentences"]) == 16
    assert (explanation["sentences"][0]["start"], explanation["sentences"][-1]["end"]) == (0, len(passage))
    assert sum(len(shard.passages) for shard in replicas[OTHER].shards) == 17


@pytest.mark.parametrize("model", [ALIGNING, OTHER])
async def test_truncate_none_does_not_refuse_an_explanation(client: httpx.AsyncClient, model: str) -> None:
    answer = await client.post("/v1/ranking", json=body(model, explain={"top_n": 2}, truncate="NONE"))

    assert answer.status_code == 200
    assert len(answer.json()["explanations"]) == 2


async def test_explanations_can_be_turned_off(models: list[ModelConfig], replicas: dict[str, Recorded]) -> None:
    api = local_api(models, replicas, limits={"max_explained_passages": 0})
    async with client_of(api) as c:
        refused = await c.post("/v1/ranking", json=body(explain={"top_n": 1}))
        plain = await c.post("/v1/ranking", json=body())

    assert refused.status_code == 400
    (problem,) = refused.json()["detail"]
    assert problem["loc"] == ["body", "explain"]
    assert "limits.max_explained_passages is 0" in problem["msg"]
    assert plain.status_code == 200
    schemas = api.openapi()["components"]["schemas"]
    assert "explain" not in schemas["RankingRequest"]["properties"]
    assert "ExplainOptions" not in schemas


async def test_openapi_states_the_limit_of_explanations(models: list[ModelConfig]) -> None:
    schemas = local_api(models, {}, limits={"max_explained_passages": 7}).openapi()["components"]["schemas"]

    assert schemas["ExplainOptions"]["properties"]["top_n"]["maximum"] == 7
    assert {"TokenAlignment", "LeaveOneSentenceOut", "TokenMatch", "Span"} <= schemas.keys()


@pytest.mark.parametrize(("model", "cost"), [(ALIGNING, 4 + 2), (OTHER, 4 + 3 + 3)])
async def test_extra_passages_count_against_the_quota(
    models: list[ModelConfig], replicas: dict[str, Recorded], model: str, cost: int
) -> None:
    passages = [PASSAGES[0], PASSAGES[1], PASSAGES[0], PASSAGES[1]]
    async with client_of(local_api(models, replicas, rate_limits={"passages_per_minute": 600})) as c:
        answer = await c.post("/v1/ranking", json=body(model, passages, explain={"top_n": 2}))

    assert answer.headers["x-ratelimit-remaining-passages"] == str(600 - cost)


async def test_an_explanation_over_the_quota_is_refused_with_a_way_out(
    models: list[ModelConfig], replicas: dict[str, Recorded]
) -> None:
    settings: dict[str, Any] = {"rate_limits": {"passages_per_minute": 5}, "limits": {"max_passages": 5}}
    async with client_of(local_api(models, replicas, **settings)) as c:
        refused = await c.post("/v1/ranking", json=body(explain={"top_n": 2}))

    assert refused.status_code == 429
    assert refused.json()["message"].endswith(" s, or send a lower explain.top_n")


class Hanging:
    """A replica that scores, but never answers a request for an explanation."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def remote(self, shard: Shard) -> "asyncio.Task[ShardScores]":
        return asyncio.ensure_future(self._score(shard))

    async def _score(self, shard: Shard) -> ShardScores:
        count = len(shard.passages)
        scores = ShardScores((1.0,) * count, (9,) * count, (False,) * count, (False,) * count, 0.0, 0.0, 0.0)
        if not shard.explain:
            return replace(scores, can_align=True)
        if self._error:
            raise self._error
        await asyncio.Event().wait()
        raise AssertionError


async def test_an_explanation_has_the_deadline_of_its_request(models: list[ModelConfig]) -> None:
    async with client_of(local_api(models, dict.fromkeys((ALIGNING, OTHER), Hanging()))) as c:
        headers = {"x-request-timeout-seconds": "0.2"}
        answer = await c.post("/v1/ranking", json=body(explain={"top_n": 1}), headers=headers)

    assert answer.status_code == 504
    assert "within 0.2 s" in answer.json()["message"]


class Replaced:
    """Replicas that a rolling update replaces after `num_old` shards; the new ones compute in another precision."""

    def __init__(self, num_old: int) -> None:
        self.num_old = num_old
        self.numerics: list[str] = []

    def remote(self, shard: Shard) -> "asyncio.Task[ShardScores]":
        return asyncio.ensure_future(self._score(shard))

    async def _score(self, shard: Shard) -> ShardScores:
        count = len(shard.passages)
        if shard.query == QUERY:  # not the test pair of readiness
            self.numerics.append("int8" if len(self.numerics) < self.num_old else "float32")
        logit = 1.0 if self.numerics[-1:] == ["int8"] else 2.0
        scores = ShardScores((logit,) * count, (9,) * count, (False,) * count, (False,) * count, 0.0, 0.0, 0.0)
        return replace(scores, numerics="".join(self.numerics[-1:]))


@pytest.mark.parametrize(
    ("num_old", "expected"), [(9, ["int8"] * 2), (0, ["float32"] * 2), (1, ["int8"] + ["float32"] * 3)]
)
async def test_a_contribution_compares_logits_of_the_same_numerics(
    models: list[ModelConfig], num_old: int, expected: list[str]
) -> None:
    replicas = Replaced(num_old)
    async with client_of(local_api(models, dict.fromkeys((ALIGNING, OTHER), replicas))) as c:
        answer = await c.post("/v1/ranking", json=body(model=OTHER, explain={"top_n": 1}))

    assert replicas.numerics == expected
    (explanation,) = answer.json()["explanations"]
    assert {one["contribution"] for one in explanation["sentences"]} == {0.0}


async def test_an_explanation_larger_than_the_queue_names_its_own_field(models: list[ModelConfig]) -> None:
    replicas = dict.fromkeys((ALIGNING, OTHER), Hanging(RequestTooLarge(5000, 4096)))
    async with client_of(local_api(models, replicas)) as c:
        answer = await c.post("/v1/ranking", json=body(explain={"top_n": 1}))

    assert answer.status_code == 413
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["body", "explain", "top_n"]
    assert problem["msg"].endswith("send a lower value")


async def test_metrics_and_log_count_the_extra_passages(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    name = f'rerank_passages_total{{model="{ALIGNING}"}}'

    async def counted() -> float:
        lines = (await client.get("/v1/metrics")).text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)), 0.0)

    before = await counted()
    with caplog.at_level(logging.INFO):
        await client.post("/v1/ranking", json=body(explain={"top_n": 3}))
    assert await counted() - before == 4 + 3
    assert any("num_passages=4 num_explaining=3 " in record.message for record in caplog.records)
