"""Canaries and shadows through the HTTP API: who answers, what the answer and the other routes say, and what shadows
record. The replicas are stand-ins, and everything else is the real ingress."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

from rerank_service.config import RerankConfig, VersionConfig
from rerank_service.errors import EngineFailed, QueueFull
from rerank_service.http.api import build_api
from rerank_service.messages import Shard, ShardScores
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.ranker import Ranker
from rerank_service.routing.traffic import TrafficSplit
from rerank_service.telemetry.ingress_metrics import IngressMetrics
from rerank_service.telemetry.tracing import Tracing
from tests.fake_handles import Response
from tests.local_service import client_of

MODEL, VERSION = "org/model", "org/model-v2"
SECRET = "a text that no log may show"
BODY = {"model": MODEL, "query": {"text": SECRET}, "passages": [{"text": "a"}, {"text": "b c"}, {"text": "d e f"}]}
FAILED = RayTaskError("score", "traceback", EngineFailed("broken"))
FULL = RayTaskError("score", "traceback", QueueFull(10, 10))
GONE = DeploymentUnavailableError(None)  # type: ignore[arg-type]
OUTCOMES = ("compared", "dropped", "failed")
_LIMIT_S = 30


class Replicas:
    """Replicas that score a passage by its length, times a factor. A test can replace the outcome."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.outcome: BaseException | None = None
        self.shards: list[Shard] = []

    def remote(self, shard: Shard) -> Response:
        self.shards.append(shard)
        if self.outcome is not None:
            return Response(self.outcome)
        logits = tuple(self.factor * len(passage) for passage in shard.passages)
        flags = (False,) * len(logits)
        return Response(ShardScores(logits, (9,) * len(logits), flags, flags, 0.0, 0.0, 0.0))


class Ingress:
    """An ingress whose model has one version."""

    def __init__(self, version: dict[str, Any], **settings: Any) -> None:
        checkpoint = {"checkpoint": {"source": "/somewhere"}}
        models = [{"id": VERSION, "version": {"of": MODEL} | version}, {"id": MODEL}]
        self.config = RerankConfig.model_validate({"models": [checkpoint | one for one in models], **settings})
        self.replicas = {MODEL: Replicas(1.0), VERSION: Replicas(-2.0)}
        self.metrics = IngressMetrics()
        self.split: TrafficSplit | None = None

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client of the ingress, once the ingress knows whether the version answers."""
        tracing = Tracing(self.config.tracing)
        router = ModelRouter(self.config, self.replicas, self.metrics, tracing)
        ranker = Ranker(router, self.config)
        api = build_api(self.config, router, ranker, self.metrics, tracing, self._follow)
        async with client_of(api) as client:
            async with asyncio.timeout(_LIMIT_S):
                while not (await self.share(client))["usable"] and self.replicas[VERSION].outcome is None:
                    await asyncio.sleep(0.005)
            yield client

    async def share(self, client: httpx.AsyncClient) -> dict[str, Any]:
        """The version's entry in `/v1/metadata`."""
        infos = (await client.get("/v1/metadata")).json()["modelInfo"]
        (found,) = [one["version"] for one in infos if "version" in one]
        return dict(found)

    async def shadowed(self, client: httpx.AsyncClient, outcome: str) -> httpx.Response:
        """Ranks until one shadow has this outcome: on a busy machine, an ingress drops shadows."""
        name, num_sent = "rerank_shadow_requests_total", 0
        while not self.metric(name, model=VERSION, outcome=outcome):
            response = await client.post("/v1/ranking", json=BODY)
            num_sent += 1
            while sum(self.metric(name, model=VERSION, outcome=one) for one in OUTCOMES) < num_sent:
                await asyncio.sleep(0.005)
        return response

    async def _follow(self, split: TrafficSplit) -> None:
        self.split = split

    def forget(self) -> None:
        for replicas in self.replicas.values():
            replicas.shards.clear()

    def metric(self, name: str, **labels: str) -> float:
        text = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        lines = self.metrics.exposition().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{{text}}}"))


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(_LIMIT_S):
        while not holds():
            await asyncio.sleep(0.005)


async def test_a_canary_answers_in_the_name_of_its_model() -> None:
    ingress = Ingress({"traffic_percent": 100})
    async with ingress.client() as client:
        ingress.forget()
        response = await client.post("/v1/ranking", json=BODY)
        other_form = await client.post("/v2/rerank", json={"model": MODEL, "query": "q", "documents": ["a", "b c"]})

    assert [one["logit"] for one in response.json()["rankings"]] == [-2.0, -6.0, -10.0]
    assert response.headers["x-model"] == VERSION
    assert other_form.json()["results"][0]["index"] == 0
    assert not ingress.replicas[MODEL].shards
    assert ingress.metric("rerank_request_seconds_count", model=VERSION) == 2
    assert ingress.metric("rerank_request_seconds_count", model=MODEL) == 0


@pytest.mark.parametrize(
    ("outcome", "code"), [(FAILED, "engine_failed"), (FULL, "queue_full"), (GONE, "replica_unavailable")]
)
async def test_the_model_answers_if_its_canary_does_not(outcome: BaseException, code: str) -> None:
    ingress = Ingress({"traffic_percent": 100}, service={"ingress": {"shard_tokens": 10}})
    async with ingress.client() as client:
        ingress.replicas[VERSION].outcome = outcome
        ingress.forget()
        response = await client.post("/v1/ranking", json=BODY)

    assert response.status_code == 200
    assert sorted(one["logit"] for one in response.json()["rankings"]) == [1.0, 3.0, 5.0]
    assert response.headers["x-model"] == MODEL
    assert {index for shard in ingress.replicas[MODEL].shards for index in shard.indices} == {0, 1, 2}
    assert ingress.metric("rerank_version_fallbacks_total", model=VERSION, code=code) == 1


async def test_a_request_that_a_canary_refused_is_load_of_the_model() -> None:
    """A retry of the client is not: the model has counted the request."""
    ingress = Ingress({"traffic_percent": 100})
    headers = {"x-request-id": "mine"}
    async with ingress.client() as client:
        ingress.forget()
        for replicas in ingress.replicas.values():
            replicas.outcome = FULL
        assert (await client.post("/v1/ranking", json=BODY, headers=headers)).status_code == 503
        ingress.replicas[MODEL].outcome = None
        assert (await client.post("/v1/ranking", json=BODY, headers=headers)).status_code == 200

    for replicas in ingress.replicas.values():
        assert [shard.is_counted for shard in replicas.shards if shard.query == SECRET] == [False, True]


async def test_a_canary_that_has_never_answered_receives_nothing() -> None:
    """The service is ready without it."""
    ingress = Ingress({"traffic_percent": 100})
    ingress.replicas[VERSION].outcome = GONE
    async with ingress.client() as client:
        async with asyncio.timeout(_LIMIT_S):
            while (await client.get("/v1/health/ready")).status_code != 200:
                await asyncio.sleep(0.005)
        response = await client.post("/v1/ranking", json=BODY)
        share = await ingress.share(client)

    assert response.headers["x-model"] == MODEL
    assert share == {"of": MODEL, "traffic_percent": 100, "shadow_percent": 0, "usable": False}
    assert all(shard.query != SECRET for shard in ingress.replicas[VERSION].shards)


async def test_an_explanation_and_its_ranking_are_of_one_version() -> None:
    ingress = Ingress({"traffic_percent": 50})
    body = BODY | {"passages": [{"text": "One. Two."}, {"text": "Three. Four."}], "explain": {"top_n": 1}}
    async with ingress.client() as client:
        for _ in range(20):
            ingress.forget()
            response = await client.post("/v1/ranking", json=body)
            assert response.status_code == 200, response.text
            used = [name for name, replicas in ingress.replicas.items() if replicas.shards]
            assert used == [response.headers["x-model"]]
            assert len(ingress.replicas[used[0]].shards) >= 2


async def test_a_version_can_be_asked_by_name_and_is_not_listed() -> None:
    ingress = Ingress({"traffic_percent": 0})
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY | {"model": VERSION})
        by_default = await client.post("/v1/ranking", json={key: BODY[key] for key in ("query", "passages")})
        listed = (await client.get("/v1/models")).json()["data"]
        unknown = (await client.post("/v1/ranking", json=BODY | {"model": "wrong"})).json()
        slug = await client.post("/v1/retrieval/nvidia/model/reranking", json=BODY)

    assert response.headers["x-model"] == VERSION
    assert by_default.headers["x-model"] == slug.headers["x-model"] == MODEL
    assert [one["id"] for one in listed] == [MODEL]
    assert VERSION not in str(unknown)


async def test_shares_change_in_place() -> None:
    ingress = Ingress({"traffic_percent": 0})
    async with ingress.client() as client:
        await until(lambda: ingress.split is not None)
        assert ingress.split is not None
        seen = []
        for percent in (0, 100, 0):
            ingress.split.change({VERSION: VersionConfig(of=MODEL, traffic_percent=percent)})
            seen.append((await client.post("/v1/ranking", json=BODY)).headers["x-model"])

    assert seen == [MODEL, VERSION, MODEL]


async def test_a_shadow_is_compared_and_never_answers(caplog: pytest.LogCaptureFixture) -> None:
    ingress = Ingress({"shadow_percent": 100})
    with caplog.at_level(logging.DEBUG, logger="rerank_service"):
        async with ingress.client() as client:
            response = await ingress.shadowed(client, "compared")

    assert response.headers["x-model"] == MODEL
    assert [one["logit"] for one in response.json()["rankings"]] == [5.0, 3.0, 1.0]
    assert ingress.metric("rerank_shadow_kendall_tau_count", model=VERSION) == 1
    assert ingress.metric("rerank_shadow_kendall_tau_sum", model=VERSION) == 0  # -1: the opposite order
    assert ingress.metric("rerank_shadow_top_ten_overlap_ratio_sum", model=VERSION) == 1
    assert ingress.metric("rerank_shadow_mean_difference_logits_sum", model=VERSION) == 9  # 3, 9 and 15
    assert ingress.metric("rerank_shadow_largest_difference_logits_sum", model=VERSION) == 15
    assert ingress.metric("rerank_shadow_requests_total", model=VERSION, outcome="compared") == 1
    assert SECRET not in caplog.text


@pytest.mark.parametrize(("outcome", "counted"), [(FULL, "dropped"), (FAILED, "failed")], ids=["full", "failed"])
async def test_a_shadow_that_fails_changes_no_answer(outcome: BaseException, counted: str) -> None:
    ingress = Ingress({"shadow_percent": 100})
    async with ingress.client() as client:
        ingress.replicas[VERSION].outcome = outcome
        response = await ingress.shadowed(client, counted)

    assert response.status_code == 200
    assert ingress.metric("rerank_shadow_kendall_tau_count", model=VERSION) == 0


async def test_a_canary_is_not_compared_with_itself() -> None:
    ingress = Ingress({"traffic_percent": 100})
    async with ingress.client() as client:
        await client.post("/v1/ranking", json=BODY)

    assert "rerank_shadow_requests_total{" not in ingress.metrics.exposition().decode()
