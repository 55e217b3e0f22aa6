"""What goes wrong in Ray comes out as one of our errors. The calls are stand-ins; Ray's exceptions are real."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from rerank_service.config import RerankConfig
from rerank_service.errors import EngineFailed, PairTooLong, ReplicaUnavailable, UnknownModel
from rerank_service.messages import Declined, Fitting, ReplicaLoad, Shard, ShardScores
from rerank_service.routing.model_router import ModelRouter
from rerank_service.routing.replica_table import MAX_DECLINED, ReplicaTable
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
SHARD = Shard("r", "nvidia/mistral", "q", ("p",), (0,), Fitting(), 9, 9)
SCORED = ShardScores((1.5,), (9,), (False,), (False,), 0.0, 0.0, 0.0)


class Score:
    """The `score` method of a handle; each call has the next outcome, the last one again and again."""

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes = list(outcomes) or [None]
        self.shards: list[Shard] = []
        self.response: Response | None = None

    def remote(self, shard: Shard) -> Response:
        self.shards.append(shard)
        self.response = Response(self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0])
        return self.response


class Deployment:
    """`score` of a deployment whose replicas are chosen as Serve's router does it, from the same table."""

    def __init__(self, replicas: dict[str, Any]) -> None:
        self.replicas = replicas
        self.table = ReplicaTable()
        self.table.count_running = lambda: len(self.replicas)
        self.sent: list[str] = []

    def remote(self, shard: Shard) -> Response:
        if not self.replicas:
            return Response(None)  # Serve's router waits for ever
        usable = self.table.usable(list(self.replicas), str, shard.avoid)
        chosen = self.table.best(usable, str, shard.num_tokens, tie_break=lambda: 0.0)[0]
        self.table.claim(len(self.sent), shard.request_id, chosen, shard.num_tokens)
        self.table.send(len(self.sent), shard.request_id, chosen, shard.num_tokens, shard.attempt)
        self.sent.append(chosen)
        outcome = self.replicas[chosen]
        self.table.complete(shard.request_id, chosen)
        return Response(outcome(shard) if callable(outcome) else outcome)

    def router(self, config: RerankConfig = CONFIG) -> ModelRouter:
        return local_router(config, {"nvidia/mistral": self}, tables={"nvidia/mistral": self.table})


def test_names_aliases_default_and_slugs() -> None:
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


async def test_a_shard_goes_to_its_models_deployment_with_the_models_id() -> None:
    wrong = ShardScores((-1.5,), (9,), (False,), (False,), 0.0, 0.0, 0.0)
    scores = {"nvidia/llama-3.2-v2": Score(wrong), "nvidia/mistral": Score(SCORED)}

    assert await local_router(CONFIG, scores).score(SHARD) == SCORED

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
        await local_router(CONFIG, {"nvidia/mistral": Score(outcome)}).score(SHARD)


@pytest.mark.parametrize(
    "loss",
    [ActorDiedError(), ActorUnavailableError("cannot be reached", None), RayTaskError("score", "", ActorDiedError())],
    ids=["died", "unreachable", "died, wrapped"],
)
async def test_another_replica_scores_what_a_lost_one_had(loss: Exception) -> None:
    score = Score(loss, SCORED)
    router = local_router(CONFIG, {"nvidia/mistral": score})
    assert await router.score(SHARD) == SCORED
    assert score.shards == [SHARD, replace(SHARD, is_counted=True)]  # the first one counted it as load
    assert b'rerank_retried_shards_total{model="nvidia/mistral"} 1.0' in router.metrics.exposition()


async def test_what_took_two_replicas_down_is_not_given_to_a_third() -> None:
    score = Score(ActorDiedError())
    with pytest.raises(ReplicaUnavailable):
        await local_router(CONFIG, {"nvidia/mistral": score}).score(SHARD)
    assert len(score.shards) == 2


@pytest.mark.parametrize(
    "error", [PairTooLong(3, 9000, 8192), BackPressureError(num_queued_requests=1, max_queued_requests=1)]
)
async def test_an_application_error_is_never_retried(error: Exception) -> None:
    score = Score(error, SCORED)
    with pytest.raises((PairTooLong, ReplicaUnavailable)):
        await local_router(CONFIG, {"nvidia/mistral": score}).score(SHARD)
    assert len(score.shards) == 1


@pytest.mark.parametrize("is_wrapped", [True, False])
async def test_the_replicas_own_error_comes_through(is_wrapped: bool) -> None:
    error = PairTooLong(3, 9000, 8192)
    outcome = RayTaskError("score", "traceback", error).as_instanceof_cause() if is_wrapped else error

    with pytest.raises(PairTooLong) as caught:
        await local_router(CONFIG, {"nvidia/mistral": Score(outcome)}).score(SHARD)

    assert type(caught.value) is PairTooLong
    assert caught.value.message == error.message


async def test_cancelling_reaches_the_replica() -> None:
    score = Score()
    router = local_router(CONFIG, {"nvidia/mistral": score})
    call = asyncio.ensure_future(router.score(SHARD))
    await asyncio.sleep(0)
    outstanding = 'rerank_outstanding_tokens{{model="nvidia/mistral"}} {}'
    assert outstanding.format(9.0) in router.metrics.exposition().decode()

    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    assert outstanding.format(0.0) in router.metrics.exposition().decode()
    assert score.response is not None
    assert score.response.is_cancelled


@pytest.mark.parametrize("is_wrapped", [True, False])
async def test_what_failed_on_one_replica_is_scored_on_another(is_wrapped: bool) -> None:
    error = (
        RayTaskError("score", "", EngineFailed("AcceleratorError")) if is_wrapped else EngineFailed("AcceleratorError")
    )
    deployment = Deployment({"broken": error, "sound": SCORED})
    router = deployment.router()

    for _ in range(20):
        assert await router.score(SHARD) == SCORED

    assert deployment.sent.count("broken") == 1  # failing fast does not make it the best
    assert b'rerank_retried_shards_total{model="nvidia/mistral"} 1.0' in router.metrics.exposition()


async def test_poison_fails_on_two_replicas_and_condemns_neither() -> None:
    deployment = Deployment(dict.fromkeys("abc", EngineFailed("IndexError")))

    with pytest.raises(EngineFailed):
        await deployment.router().score(SHARD)

    assert len(deployment.sent) == len(set(deployment.sent)) == 2
    assert list(deployment.table.usable("abc", str)) == ["a", "b", "c"]


async def test_a_broken_replica_is_not_acquitted_by_poison() -> None:
    deployment = Deployment({"broken": EngineFailed("AcceleratorError"), "sound": SCORED})
    router = deployment.router()
    await router.score(SHARD)
    deployment.replicas["sound"] = EngineFailed("IndexError")
    with pytest.raises(EngineFailed):
        await router.score(SHARD)

    assert list(deployment.table.usable(["broken", "sound"], str)) == ["sound"]


async def test_the_only_replica_does_not_get_twice_what_it_failed_on() -> None:
    deployment = Deployment({"only": EngineFailed("IndexError")})

    with pytest.raises(EngineFailed):
        await deployment.router().score(SHARD)

    assert deployment.sent == ["only"]


async def test_a_lost_replica_and_a_failed_one_share_the_two_tries() -> None:
    deployment = Deployment({"a": ActorDiedError(), "b": EngineFailed("IndexError"), "c": SCORED})

    with pytest.raises(EngineFailed):
        await deployment.router().score(SHARD)

    assert deployment.sent == ["a", "b"]


async def test_a_busy_replica_hands_a_shard_back_and_the_next_choice_knows_why() -> None:
    busy = ReplicaLoad("a", 9_000, 1_000.0, 1.0)
    deployment = Deployment({"a": Declined(busy), "b": SCORED})
    deployment.table.add_report(ReplicaLoad("b", 100, 1_000.0, 1.0))
    deployment.table.add_report(ReplicaLoad("a", 0, 1_000.0, 0.0))

    assert await deployment.router().score(SHARD) == SCORED
    assert deployment.sent == ["a", "b"]


async def test_a_shard_is_handed_back_only_so_often() -> None:
    def busy(shard: Shard) -> Any:
        return Declined(ReplicaLoad("a", 9_000, 1_000.0, 1.0)) if shard.may_decline else SCORED

    deployment = Deployment({"a": busy})

    assert await deployment.router().score(SHARD) == SCORED
    assert len(deployment.sent) == MAX_DECLINED + 1


async def test_without_a_replica_a_ranking_is_refused_and_not_hung() -> None:
    deployment = Deployment({})
    async with asyncio.timeout(30):
        with pytest.raises(ReplicaUnavailable):
            await deployment.router().score(SHARD)


async def test_a_call_that_a_going_replica_has_is_left_alone() -> None:
    deployment = Deployment({"a": None})
    call = asyncio.ensure_future(deployment.router().score(SHARD))
    await asyncio.sleep(0)
    deployment.replicas.clear()

    assert not (await asyncio.wait({call}, timeout=3))[0]
    call.cancel()


async def test_a_model_that_scales_from_zero_waits_for_its_start() -> None:
    models = [model.model_dump() for model in CONFIG.models]
    models[1]["autoscaling"] |= {"min_replicas": 0}
    deployment = Deployment({})
    call = asyncio.ensure_future(deployment.router(RerankConfig.model_validate({"models": models})).score(SHARD))

    assert not (await asyncio.wait({call}, timeout=3))[0]
    call.cancel()
