"""Names of models, retries, and Ray's failures as the service's errors. The calls are stand-ins; Ray's exceptions are
real."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from rerank_service.config import RerankConfig
from rerank_service.errors import EngineFailed, PairTooLong, ReplicaUnavailable, UnknownModel
from rerank_service.messages import Deadline, Declined, Fitting, ReplicaLoad, Shard, ShardScores
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.replica_table import MAX_DECLINED, ReplicaTable
from rerank_service.telemetry.ingress_metrics import IngressMetrics
from tests.fake_handles import Response
from tests.local_service import local_router

CONFIG = RerankConfig.model_validate(
    {
        "models": [
            {"id": "nvidia/llama-3.2-v2", "aliases": ["nvidia/other"], "checkpoint": {"source": "/a"}},
            {"id": "nvidia/mistral", "checkpoint": {"source": "/b"}},
        ],
        "service": {"default_model": "nvidia/mistral"},
    }
)
SHARD = Shard("r", "nvidia/mistral", "q", ("p",), (0,), Fitting(), 9, 9, explain=True)
SCORED = ShardScores((1.5,), (9,), (False,), (False,), 0.0, 0.0, 0.0)


def soon() -> Deadline:
    return Deadline.after(60.0)


class Score:
    """The `score` method of a handle. Each call has the next outcome, and the last outcome repeats."""

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes = list(outcomes) or [None]
        self.shards: list[Shard] = []
        self.response: Response | None = None

    def remote(self, shard: Shard) -> Response:
        self.shards.append(shard)
        self.response = Response(self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0])
        return self.response


class Deployment:
    """The `score` method of a deployment. Replicas are chosen from the table, as in Serve's router."""

    def __init__(self, replicas: dict[str, Any]) -> None:
        self.replicas = replicas
        self.table = ReplicaTable()
        self.table.count_running = lambda: len(self.replicas)
        self.sent: list[str] = []

    def remote(self, shard: Shard) -> Response:
        if not self.replicas:
            return Response(None)  # Serve's router waits forever
        usable = self.table.usable(list(self.replicas), str, shard.avoid)
        chosen = self.table.best(usable, str, shard.num_tokens, tie_break=lambda: 0.0)[0]
        self.table.claim(len(self.sent), shard.request_id, chosen, shard.num_tokens)
        self.table.send(len(self.sent), shard.request_id, chosen, shard.num_tokens, shard.attempt)
        self.sent.append(chosen)
        outcome = self.replicas[chosen]
        self.table.complete(shard.request_id, chosen)
        return Response(outcome(shard) if callable(outcome) else outcome)

    def router(self, config: RerankConfig = CONFIG, metrics: IngressMetrics | None = None) -> ModelRouter:
        return local_router(config, {"nvidia/mistral": self}, {"nvidia/mistral": self.table}, metrics)


def test_models_are_found_by_name_alias_default_and_slug() -> None:
    router = local_router(CONFIG, {})

    assert router.resolve("NVIDIA/Llama-3.2-v2").id == "nvidia/llama-3.2-v2"
    assert router.resolve("nvidia/other").id == "nvidia/llama-3.2-v2"
    assert router.resolve(None).id == "nvidia/mistral"
    assert router.resolve_slug("llama-3_2-v2").id == "nvidia/llama-3.2-v2"
    assert router.resolve_slug("other").id == "nvidia/llama-3.2-v2"
    for resolve, loc in ((router.resolve, ("body", "model")), (router.resolve_slug, ("path", "slug"))):
        with pytest.raises(UnknownModel, match="nvidia/other, nvidia/mistral") as caught:
            resolve("llama")
        assert caught.value.loc == loc


def test_of_two_models_with_one_slug_the_first_answers() -> None:
    models = [{"id": f"{organisation}/same", "checkpoint": {"source": "/a"}} for organisation in ("first", "second")]
    router = local_router(RerankConfig.model_validate({"models": models}), {})

    assert router.resolve_slug("same").id == "first/same"


async def test_a_shard_is_sent_to_its_models_deployment_with_the_models_id() -> None:
    wrong = ShardScores((-1.5,), (9,), (False,), (False,), 0.0, 0.0, 0.0)
    scores = {"nvidia/llama-3.2-v2": Score(wrong), "nvidia/mistral": Score(SCORED)}

    assert await local_router(CONFIG, scores).score(SHARD, soon()) == SCORED

    assert [shard.model for shard in scores["nvidia/mistral"].shards] == ["nvidia/mistral"]
    assert scores["nvidia/llama-3.2-v2"].shards == []


@pytest.mark.parametrize(
    "outcome",
    [
        ActorDiedError(),
        BackPressureError(num_queued_requests=1, max_queued_requests=1),
        DeploymentUnavailableError(None),
        RayTaskError("score", "traceback", ActorDiedError()),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_lost_replica_is_unavailable(outcome: Exception) -> None:
    with pytest.raises(ReplicaUnavailable, match="nvidia/mistral"):
        await local_router(CONFIG, {"nvidia/mistral": Score(outcome)}).score(SHARD, soon())


@pytest.mark.parametrize(
    "loss",
    [ActorDiedError(), ActorUnavailableError("cannot be reached", None), RayTaskError("score", "", ActorDiedError())],
    ids=["died", "unreachable", "died, wrapped"],
)
async def test_another_replica_scores_the_shard_of_a_lost_replica(loss: Exception) -> None:
    score, metrics = Score(loss, SCORED), IngressMetrics()
    router = local_router(CONFIG, {"nvidia/mistral": score}, metrics=metrics)
    assert await router.score(SHARD, soon()) == SCORED
    first, second = score.shards
    assert (first.is_counted, second.is_counted) == (False, True)  # the first replica has counted the shard as load
    assert replace(second, timeout_s=None, is_counted=False) == SHARD
    assert first.timeout_s is not None
    assert second.timeout_s is not None
    assert 0.0 < second.timeout_s <= first.timeout_s <= 60.0  # the remaining time until the same deadline
    assert b'rerank_retried_shards_total{model="nvidia/mistral"} 1.0' in metrics.exposition()


async def test_a_shard_that_brought_down_two_replicas_is_not_sent_to_a_third() -> None:
    score = Score(ActorDiedError())
    with pytest.raises(ReplicaUnavailable):
        await local_router(CONFIG, {"nvidia/mistral": score}).score(SHARD, soon())
    assert len(score.shards) == 2


@pytest.mark.parametrize(
    "error", [PairTooLong(3, 9000, 8192), BackPressureError(num_queued_requests=1, max_queued_requests=1)]
)
async def test_an_application_error_is_never_retried(error: Exception) -> None:
    score = Score(error, SCORED)
    with pytest.raises((PairTooLong, ReplicaUnavailable)):
        await local_router(CONFIG, {"nvidia/mistral": score}).score(SHARD, soon())
    assert len(score.shards) == 1


@pytest.mark.parametrize("is_wrapped", [True, False])
async def test_the_replicas_own_error_is_raised(is_wrapped: bool) -> None:
    error = PairTooLong(3, 9000, 8192)
    outcome = RayTaskError("score", "traceback", error).as_instanceof_cause() if is_wrapped else error

    with pytest.raises(PairTooLong) as caught:
        await local_router(CONFIG, {"nvidia/mistral": Score(outcome)}).score(SHARD, soon())

    assert type(caught.value) is PairTooLong
    assert caught.value.message == error.message


async def test_cancelling_reaches_the_replica() -> None:
    score, metrics = Score(), IngressMetrics()
    router = local_router(CONFIG, {"nvidia/mistral": score}, metrics=metrics)
    call = asyncio.ensure_future(router.score(SHARD, soon()))
    await asyncio.sleep(0)
    outstanding = 'rerank_outstanding_tokens{{model="nvidia/mistral"}} {}'
    assert outstanding.format(9.0) in metrics.exposition().decode()

    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    assert outstanding.format(0.0) in metrics.exposition().decode()
    assert score.response is not None
    assert score.response.is_cancelled


@pytest.mark.parametrize("is_wrapped", [True, False])
async def test_a_shard_that_failed_on_one_replica_is_scored_on_another(is_wrapped: bool) -> None:
    error = (
        RayTaskError("score", "", EngineFailed("AcceleratorError")) if is_wrapped else EngineFailed("AcceleratorError")
    )
    deployment, metrics = Deployment({"broken": error, "sound": SCORED}), IngressMetrics()
    router = deployment.router(metrics=metrics)

    for _ in range(20):
        assert await router.score(SHARD, soon()) == SCORED

    assert deployment.sent.count("broken") == 1  # failing fast does not make a replica the best choice
    assert b'rerank_retried_shards_total{model="nvidia/mistral"} 1.0' in metrics.exposition()


async def test_a_shard_that_fails_on_two_replicas_leaves_both_in_use() -> None:
    deployment = Deployment(dict.fromkeys("abc", EngineFailed("IndexError")))

    with pytest.raises(EngineFailed):
        await deployment.router().score(SHARD, soon())

    assert len(deployment.sent) == len(set(deployment.sent)) == 2
    assert list(deployment.table.usable("abc", str)) == ["a", "b", "c"]


async def test_a_failed_replica_stays_avoided_when_a_later_shard_fails_elsewhere() -> None:
    deployment = Deployment({"broken": EngineFailed("AcceleratorError"), "sound": SCORED})
    router = deployment.router()
    await router.score(SHARD, soon())
    deployment.replicas["sound"] = EngineFailed("IndexError")
    with pytest.raises(EngineFailed):
        await router.score(SHARD, soon())

    assert list(deployment.table.usable(["broken", "sound"], str)) == ["sound"]


async def test_the_only_replica_does_not_get_a_failed_shard_twice() -> None:
    deployment = Deployment({"only": EngineFailed("IndexError")})

    with pytest.raises(EngineFailed):
        await deployment.router().score(SHARD, soon())

    assert deployment.sent == ["only"]


async def test_a_lost_replica_and_a_failed_replica_count_together() -> None:
    deployment = Deployment({"a": ActorDiedError(), "b": EngineFailed("IndexError"), "c": SCORED})

    with pytest.raises(EngineFailed):
        await deployment.router().score(SHARD, soon())

    assert deployment.sent == ["a", "b"]


async def test_a_declined_shard_is_sent_to_a_less_busy_replica() -> None:
    busy = ReplicaLoad("a", 9_000, 1_000.0, 1.0)
    deployment = Deployment({"a": Declined(busy), "b": SCORED})
    deployment.table.add_report(ReplicaLoad("b", 100, 1_000.0, 1.0))
    deployment.table.add_report(ReplicaLoad("a", 0, 1_000.0, 0.0))

    assert await deployment.router().score(SHARD, soon()) == SCORED
    assert deployment.sent == ["a", "b"]


async def test_a_shard_is_declined_twice_at_most() -> None:
    def busy(shard: Shard) -> Any:
        return Declined(ReplicaLoad("a", 9_000, 1_000.0, 1.0)) if shard.may_decline else SCORED

    deployment = Deployment({"a": busy})

    assert await deployment.router().score(SHARD, soon()) == SCORED
    assert len(deployment.sent) == MAX_DECLINED + 1


async def test_without_a_replica_a_shard_is_refused() -> None:
    deployment = Deployment({})
    async with asyncio.timeout(30):
        with pytest.raises(ReplicaUnavailable):
            await deployment.router().score(SHARD, soon())


async def test_a_call_on_a_stopping_replica_continues() -> None:
    deployment = Deployment({"a": None})
    call = asyncio.ensure_future(deployment.router().score(SHARD, soon()))
    await asyncio.sleep(0)
    deployment.replicas.clear()

    assert not (await asyncio.wait({call}, timeout=3))[0]
    call.cancel()


async def test_a_model_that_scales_from_zero_waits_for_its_start() -> None:
    models = [model.model_dump() for model in CONFIG.models]
    models[1]["autoscaling"] |= {"min_replicas": 0}
    deployment = Deployment({})
    call = asyncio.ensure_future(
        deployment.router(RerankConfig.model_validate({"models": models})).score(SHARD, soon())
    )

    assert not (await asyncio.wait({call}, timeout=3))[0]
    call.cancel()
