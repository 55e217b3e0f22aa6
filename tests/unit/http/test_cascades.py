"""Cascades through the HTTP API: which stage scores what, what the answer says, and what happens under overload. The
replicas are stand-ins, and everything else is the real ingress."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

from rerank_service.config import RerankConfig, VersionConfig
from rerank_service.errors import EngineFailed, NonFiniteLogit, PairTooLong, QueueFull, RequestTooLarge, WaitTooLong
from rerank_service.http.api import build_api
from rerank_service.messages import Shard, ShardScores
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.ranker import Ranker
from rerank_service.routing.traffic import TrafficSplit
from rerank_service.telemetry.ingress_metrics import IngressMetrics
from rerank_service.telemetry.tracing import Tracing
from tests.fake_handles import Response
from tests.local_service import client_of

SECRET = "a text that no log may show"
PASSAGES = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
BODY = {"model": "both", "query": {"text": SECRET}, "passages": [{"text": text} for text in PASSAGES]}
_LIMIT_S = 30


def failed(error: Exception) -> RayTaskError:
    return RayTaskError("score", "traceback", error)


FULL = failed(QueueFull(10, 10))
LATE = failed(WaitTooLong(2.0, 1.0, 0.2, False, 1))
GONE = DeploymentUnavailableError(None)  # type: ignore[arg-type]
BROKEN = failed(EngineFailed("broken"))


class Replicas:
    """Replicas that score each passage with a function. A test can replace the outcome; null never answers."""

    def __init__(self, logit: Callable[[str], float]) -> None:
        self.logit = logit
        self.outcome: Any = ...
        self.shards: list[Shard] = []

    def remote(self, shard: Shard) -> Response:
        self.shards.append(shard)
        if self.outcome is not ... and shard.query == SECRET:
            return Response(self.outcome)
        logits = tuple(map(self.logit, shard.passages))
        flags = (False,) * len(logits)
        cut = tuple(len(passage) > 4 for passage in shard.passages)
        return Response(ShardScores(logits, (9,) * len(logits), cut, flags, 0.01, 0.02, 0.03))

    @property
    def passages(self) -> list[str]:
        """The passages of the test's requests, without those of probes."""
        return [text for shard in self.shards if shard.query == SECRET for text in shard.passages]


class Ingress:
    """An ingress with a cascade of two models. `small` prefers long passages, and `large` prefers short ones."""

    def __init__(self, keep: Any = 3, more_models: tuple[dict[str, Any], ...] = (), **settings: Any) -> None:
        models = [{"id": "small"}, {"id": "large"}, *more_models]
        cascade = {"id": "both", "stages": [{"model": "small", "keep": keep}, {"model": "large"}]}
        cascade |= settings.pop("cascade", {})
        self.config = RerankConfig.model_validate(
            {
                "models": [{"checkpoint": {"source": "/somewhere"}} | model for model in models],
                "cascades": [cascade],
                "service": {"ingress": {"shard_tokens": 20}},  # several shards per request
                **settings,
            }
        )
        self.replicas = {
            "small": Replicas(lambda text: float(len(text))),
            "large": Replicas(lambda text: -len(text) / 4),
        }
        self.replicas |= {model["id"]: Replicas(lambda text: -float(len(text))) for model in more_models}
        self.metrics = IngressMetrics()

    @asynccontextmanager
    async def client(self, follow: Any = None) -> AsyncIterator[httpx.AsyncClient]:
        tracing = Tracing(self.config.tracing)
        router = ModelRouter(self.config, self.replicas, self.metrics, tracing)
        api = build_api(self.config, router, Ranker(router, self.config), self.metrics, tracing, follow)
        async with client_of(api) as client:
            yield client

    def metric(self, name: str, **labels: str) -> float:
        text = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        lines = self.metrics.exposition().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{{text}}}"))


def early(**settings: Any) -> dict[str, Any]:
    return {"on_overload": "answer_early", **settings}


async def test_the_second_stage_scores_only_the_kept_passages_of_the_whole_request() -> None:
    ingress = Ingress()
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY)

    assert response.status_code == 200, response.text
    small, large = ingress.replicas["small"], ingress.replicas["large"]
    assert sorted(small.passages) == PASSAGES
    assert sorted(large.passages) == PASSAGES[3:]
    assert len([shard for shard in small.shards if shard.query == SECRET]) > 1
    assert response.json()["rankings"] == [
        {"index": 3, "logit": -1.0},
        {"index": 4, "logit": -1.25},
        {"index": 5, "logit": -1.5},
        {"index": 2, "logit": -2.5},
        {"index": 1, "logit": -3.5},
        {"index": 0, "logit": -4.5},
    ]
    assert response.json()["usage"] == {"prompt_tokens": 81, "total_tokens": 81}


async def test_the_answer_says_what_each_stage_did(caplog: pytest.LogCaptureFixture) -> None:
    ingress = Ingress()
    with caplog.at_level(logging.INFO, logger="rerank_service"):
        async with ingress.client() as client:
            response = await client.post("/v1/ranking", json=BODY)

    assert response.headers["x-model"] == "both"
    assert response.headers["x-rerank-stages"] == "small=6, large=3"
    assert response.headers["x-rerank-truncated-passages"] == "2"
    timing = response.headers["Server-Timing"]
    assert re.search(r'forward;dur=60\.0, total;dur=[\d.]+, stage-1;dur=[\d.]+;desc="small", stage-2;', timing)
    assert ingress.metric("rerank_cascade_stage_passages_total", model="both", stage="small") == 6
    assert ingress.metric("rerank_cascade_stage_passages_total", model="both", stage="large") == 3
    assert ingress.metric("rerank_cascade_stage_seconds_count", model="both", stage="large") == 1
    assert ingress.metric("rerank_request_passages_sum", model="both") == 6
    assert ingress.metric("rerank_tokens_total", model="both") == 81
    (line,) = [record.getMessage() for record in caplog.records if "status=200" in record.getMessage()]
    assert "model=both" in line
    assert line.split(" stages=")[1].split()[0] == "small=6,large=3"
    assert SECRET not in caplog.text


async def test_each_compatible_api_gets_the_ranking_of_the_cascade() -> None:
    ingress = Ingress()
    common = {"model": "both", "query": SECRET}
    async with ingress.client() as client:
        cohere = await client.post("/v2/rerank", json=common | {"documents": PASSAGES, "top_n": 4})
        jina = await client.post("/v1/rerank", json=common | {"documents": PASSAGES})
        tei = await client.post("/rerank", json={"query": SECRET, "texts": PASSAGES, "model": "both"})
        slug = await client.post("/v1/retrieval/nvidia/both/reranking", json={**BODY, "model": None})

    order = [3, 4, 5, 2, 1, 0]
    assert [one["index"] for one in cohere.json()["results"]] == order[:4]
    assert [one["index"] for one in jina.json()["results"]] == order
    assert slug.headers["x-model"] == "both"
    assert [one["index"] for one in slug.json()["rankings"]] == order
    scores = [one["relevance_score"] for one in jina.json()["results"]]
    assert scores == sorted(set(scores), reverse=True)
    assert [one["index"] for one in tei.json()] == order


async def test_a_cascade_can_be_the_default_model() -> None:
    ingress = Ingress(service={"default_model": "both"})
    async with ingress.client() as client:
        response = await client.post("/rerank", json={"query": SECRET, "texts": PASSAGES})
        info = (await client.get("/info")).json()
        listed = (await client.get("/v1/models")).json()["data"]

    assert [one["index"] for one in response.json()] == [3, 4, 5, 2, 1, 0]
    assert info["model_id"] == "both"
    assert [one["id"] for one in listed] == ["both", "small", "large"]


async def test_scores_come_from_the_last_stage_alone() -> None:
    ingress = Ingress()
    body = {"model": "both", "text_1": SECRET, "text_2": PASSAGES, "use_activation": False}
    several = body | {"text_1": [SECRET, SECRET, "other", SECRET, "other", SECRET]}
    async with ingress.client() as client:
        response = await client.post("/score", json=body)
        of_several = await client.post("/score", json=several)

    for answer in (response, of_several):
        assert [one["score"] for one in answer.json()["data"]] == [-0.25, -0.5, -0.75, -1.0, -1.25, -1.5]
        assert answer.json()["model"] == answer.headers["x-model"] == "both"
        assert answer.headers["x-rerank-stages"] == "large=6"
    assert not ingress.replicas["small"].passages


async def test_a_stage_that_would_keep_everything_is_not_run() -> None:
    ingress = Ingress(keep=6)
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY)

    assert [one["index"] for one in response.json()["rankings"]] == [0, 1, 2, 3, 4, 5]
    assert response.headers["x-rerank-stages"] == "small=0;skipped=keeps_all, large=6"
    assert not ingress.replicas["small"].passages
    assert ingress.metric("rerank_cascade_skipped_stages_total", model="both", stage="small", reason="keeps_all") == 0


async def test_three_stages_and_a_margin() -> None:
    stages = [{"model": "small", "keep": {"margin": 3}}, {"model": "middle", "keep": 0.5}, {"model": "large"}]
    ingress = Ingress(more_models=({"id": "middle"},), cascade={"stages": stages})
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY)

    assert response.headers["x-rerank-stages"] == "small=6, middle=4, large=2"
    assert [one["index"] for one in response.json()["rankings"]] == [2, 3, 4, 5, 1, 0]


async def test_models_lists_the_stages() -> None:
    ingress = Ingress(keep={"margin": 2.5})
    async with ingress.client() as client:
        listed = {one["id"]: one for one in (await client.get("/v1/models")).json()["data"]}
        one = (await client.get("/v1/models/BOTH")).json()
        unknown = (await client.post("/v1/ranking", json=BODY | {"model": "wrong"})).json()

    assert (
        listed["both"]["stages"] == one["stages"] == [{"model": "small", "keep": {"margin": 2.5}}, {"model": "large"}]
    )
    assert "stages" not in listed["small"]
    assert "this service has: small, large, both" in unknown["message"]


async def test_a_cascade_has_the_smallest_window_of_its_stages() -> None:
    ingress = Ingress(more_models=({"id": "unused", "window_tokens": 64},))
    ingress.metrics.window_tokens |= {"small": 512, "large": 8192}
    async with ingress.client() as client:
        listed = {one["id"]: one for one in (await client.get("/v1/models")).json()["data"]}

    assert listed["both"]["max_model_len"] == 512


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [(FULL, 503, "queue_full"), (LATE, 503, "wait_too_long"), (GONE, 503, "replica_unavailable")],
)
@pytest.mark.parametrize("stage", ["small", "large"])
async def test_by_default_an_overloaded_stage_refuses_the_request(
    outcome: BaseException, status: int, code: str, stage: str
) -> None:
    ingress = Ingress()
    ingress.replicas[stage].outcome = outcome
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY)

    assert response.status_code == status
    assert response.json()["detail"][0]["type"] == code
    assert "x-rerank-stages" not in response.headers


async def test_the_work_before_a_failed_stage_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    ingress = Ingress()
    ingress.replicas["large"].outcome = BROKEN
    with caplog.at_level(logging.INFO, logger="rerank_service"):
        async with ingress.client() as client:
            assert (await client.post("/v1/ranking", json=BODY)).status_code == 500

    assert ingress.metric("rerank_cascade_stage_passages_total", model="both", stage="small") == 6
    assert ingress.metric("rerank_cascade_stage_passages_total", model="both", stage="large") == 0
    (line,) = [record.getMessage() for record in caplog.records if "status=500" in record.getMessage()]
    assert line.split(" stages=")[1].split()[0] == "small=6"


@pytest.mark.parametrize(
    ("outcome", "code"), [(FULL, "queue_full"), (LATE, "wait_too_long"), (GONE, "replica_unavailable")]
)
async def test_an_early_answer_leaves_out_an_overloaded_last_stage(outcome: BaseException, code: str) -> None:
    ingress = Ingress(cascade=early())
    ingress.replicas["large"].outcome = outcome
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY)

    assert response.status_code == 200, response.text
    assert [one["logit"] for one in response.json()["rankings"]] == [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert response.headers["x-rerank-stages"] == f"small=6, large=0;skipped={code}"
    assert "stage-2" not in response.headers["Server-Timing"]
    assert response.json()["usage"]["total_tokens"] == 54
    assert ingress.metric("rerank_cascade_skipped_stages_total", model="both", stage="large", reason=code) == 1
    assert ingress.metric("rerank_shed_requests_total", model="both", code=code) == 0


async def test_all_stages_after_an_overloaded_one_are_left_out() -> None:
    stages = [{"model": "small", "keep": 4}, {"model": "middle", "keep": 2}, {"model": "large"}]
    ingress = Ingress(more_models=({"id": "middle"},), cascade=early(stages=stages))
    ingress.replicas["middle"].outcome = FULL
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY)

    header = "small=6, middle=0;skipped=queue_full, large=0;skipped=queue_full"
    assert response.headers["x-rerank-stages"] == header
    assert not ingress.replicas["large"].passages


async def test_the_first_stage_cannot_be_left_out() -> None:
    ingress = Ingress(cascade=early())
    ingress.replicas["small"].outcome = FULL
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY)

    assert response.status_code == 503


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NonFiniteLogit(1), 500),
        (EngineFailed("broken"), 500),
        (RequestTooLarge(9, 8), 413),
        (PairTooLong(0, 9, 8), 400),
    ],
)
async def test_an_early_answer_hides_no_other_error(error: Exception, status: int) -> None:
    ingress = Ingress(cascade=early())
    ingress.replicas["large"].outcome = failed(error)
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY)

    assert response.status_code == status


async def test_an_error_of_the_last_stage_names_the_passage_of_the_request() -> None:
    """The stage's first passage is the request's fourth."""
    ingress = Ingress(service={"ingress": {"shard_tokens": 1000}})
    ingress.replicas["large"].outcome = failed(PairTooLong(0, 9, 8))
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY | {"truncate": "NONE"})

    assert response.json()["detail"][0]["loc"] == ["body", "passages", 3, "text"]


async def test_a_last_stage_that_does_not_answer_is_left_out_before_the_deadline() -> None:
    ingress = Ingress(cascade=early())
    ingress.replicas["large"].outcome = None
    headers = {"x-request-timeout-seconds": "0.4"}
    async with ingress.client() as client:
        first = await client.post("/v1/ranking", json=BODY, headers=headers)
        num_shards = len(ingress.replicas["large"].shards)
        second = await client.post("/v1/ranking", json=BODY, headers=headers)

    assert first.headers["x-rerank-stages"] == "small=6, large=0;skipped=request_timed_out"
    assert second.headers["x-rerank-stages"] == "small=6, large=0;skipped=short_deadline"  # it has learnt the time
    assert len(ingress.replicas["large"].shards) == num_shards


async def test_without_early_answers_the_deadline_is_that_of_the_whole_request() -> None:
    ingress = Ingress()
    ingress.replicas["large"].outcome = None
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY, headers={"x-request-timeout-seconds": "0.2"})

    assert response.status_code == 504
    assert "within 0.2 s" in response.json()["message"]


async def test_a_shared_time_limit_shrinks_from_stage_to_stage() -> None:
    ingress = Ingress()
    async with ingress.client() as client:
        await client.post("/v1/ranking", json=BODY, headers={"x-request-timeout-seconds": "5"})

    small, large = (
        [one.timeout_s or 0 for one in ingress.replicas[name].shards if one.query == SECRET]
        for name in ("small", "large")
    )
    assert 0 < max(large) < min(small) <= 5


async def test_the_last_stage_explains_its_own_passages() -> None:
    ingress = Ingress(keep=2)
    passages = [{"text": text} for text in ("x", "One is long. Two.", "Three. Four. Five is longer.")]
    body = BODY | {"passages": passages, "explain": {"top_n": 3}}
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=body)

    answer = response.json()
    assert [one["index"] for one in answer["rankings"]] == [1, 2, 0]
    assert [one["index"] for one in answer["explanations"]] == [1, 2]  # the third has no logit of the last stage
    assert len(answer["explanations"][1]["sentences"]) == 3


async def test_an_early_answer_has_no_explanations() -> None:
    ingress = Ingress(cascade=early())
    ingress.replicas["large"].outcome = FULL
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY | {"explain": {"top_n": 2}})

    assert response.status_code == 200
    assert response.json()["explanations"] == []


async def test_quotas_count_the_passages_of_a_request_once() -> None:
    ingress = Ingress(rate_limits={"passages_per_minute": 1000}, limits={"max_passages": 1000})
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY)

    assert response.headers["x-ratelimit-remaining-passages"] == "994"


async def test_a_canary_receives_its_share_of_a_stage() -> None:
    version = {"id": "large-v2", "version": {"of": "large", "traffic_percent": 0}}
    ingress = Ingress(more_models=(version,))
    splits: list[TrafficSplit] = []

    async def follow(split: TrafficSplit) -> None:
        splits.append(split)

    async with ingress.client(follow) as client:
        async with asyncio.timeout(_LIMIT_S):
            while not (splits and splits[0].is_usable("large-v2")):
                await asyncio.sleep(0.005)
        by_model = await client.post("/v1/ranking", json=BODY)
        splits[0].change({"large-v2": VersionConfig(of="large", traffic_percent=100)})
        by_canary = await client.post("/v1/ranking", json=BODY)
        ingress.replicas["large-v2"].outcome = BROKEN
        by_fallback = await client.post("/v1/ranking", json=BODY)

    assert by_model.headers["x-rerank-stages"] == "small=6, large=3"
    assert by_canary.headers["x-rerank-stages"] == "small=6, large-v2=3"
    assert by_canary.headers["x-model"] == "both"
    assert [one["logit"] for one in by_canary.json()["rankings"]][:3] == [-4.0, -5.0, -6.0]
    assert by_fallback.json() == by_model.json()
    assert ingress.metric("rerank_version_fallbacks_total", model="large-v2", code="engine_failed") == 1


async def test_a_shadow_scores_the_passages_of_its_stage() -> None:
    version = {"id": "large-v2", "version": {"of": "large", "shadow_percent": 100}}
    ingress = Ingress(more_models=(version,))
    async with ingress.client() as client:
        async with asyncio.timeout(_LIMIT_S):
            # A busy ingress drops shadows.
            while not ingress.metric("rerank_shadow_requests_total", model="large-v2", outcome="compared"):
                response = await client.post("/v1/ranking", json=BODY)
                await asyncio.sleep(0.05)

    assert response.headers["x-rerank-stages"] == "small=6, large=3"
    assert set(ingress.replicas["large-v2"].passages) == set(PASSAGES[3:])
