"""When an ingress calls itself ready, over the real ranker and router in virtual time. The replicas are stand-ins."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import httpx
import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

from rerank_service.config import RerankConfig
from rerank_service.errors import QueueFull
from rerank_service.messages import ReplicaReport, Shard, ShardScores
from tests.fake_handles import Response
from tests.local_service import api_over, client_of

MODELS = ("a", "b")
SCORED = ShardScores((1.5,), (9,), (False,), (False,), 0.0, 0.0, 0.0)
GONE = {
    "no replica": DeploymentUnavailableError(None),  # type: ignore[arg-type]
    "dead": ActorDiedError(),
    "silent": None,
}
THERE = {
    "answers": SCORED,
    "full": RayTaskError("score", "traceback", QueueFull(10, 10)),
    "bug": RayTaskError("score", "traceback", ValueError()),
}


class _JumpingSelector(selectors.SelectSelector):
    """Waits for nothing: the time it would have waited has passed."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # only for a thread that ends
            return super().select(None)
        self.now_s += timeout
        return super().select(0)


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


class Handle:
    """A deployment's `score`; what it does now can be changed."""

    def __init__(self, outcome: Any = SCORED) -> None:
        self.outcome = outcome
        self.shards: list[Shard] = []

    def remote(self, shard: Shard) -> Response:
        self.shards.append(shard)
        return Response(self.outcome)


Scenario = Callable[[httpx.AsyncClient, dict[str, Handle]], Coroutine[Any, Any, None]]


def play(scenario: Scenario, **settings: Any) -> dict[str, Handle]:
    """Runs a scenario against an ingress of two models, or of `models`."""
    models = settings.pop("models", [{"id": name} for name in MODELS])
    checkpoint = {"checkpoint": {"source": "/somewhere"}}
    config = RerankConfig.model_validate({"models": [checkpoint | model for model in models], **settings})
    handles = {model.id: Handle() for model in config.models}

    async def run() -> None:
        async with client_of(api_over(config, handles)) as client:
            await asyncio.sleep(0.1)
            await scenario(client, handles)

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(run())
    return handles


async def ready(client: httpx.AsyncClient) -> tuple[int, str, list[str]]:
    response = await client.get("/v1/health/ready")
    answer = response.json()
    assert (answer["ready"], answer["status"]) == (
        (True, "ready") if response.status_code == 200 else (False, "not_ready")
    )
    return response.status_code, answer["message"], answer.get("unreachable", [])


READY = (200, "Service is ready.", [])


@pytest.mark.parametrize("outcome", GONE.values(), ids=GONE)
def test_an_ingress_that_reaches_no_replica_for_ten_seconds_is_not_ready_and_recovers(outcome: Any) -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        assert await ready(client) == READY
        for handle in handles.values():
            handle.outcome = outcome
        await asyncio.sleep(6.5)
        assert await ready(client) == READY
        await asyncio.sleep(4.0)
        assert await ready(client) == (503, "Service is not ready; no replica of any model answers", ["a", "b"])
        for handle in handles.values():
            handle.outcome = SCORED
        await asyncio.sleep(5.0)
        assert await ready(client) == READY

    play(scenario)


@pytest.mark.parametrize("outcome", GONE.values(), ids=GONE)
def test_one_model_of_several_that_is_gone_is_named(outcome: Any) -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        handles["b"].outcome = outcome
        await asyncio.sleep(11.0)
        assert await ready(client) == (200, "Service is ready, except for: b", ["b"])
        handles["b"].outcome = SCORED
        await asyncio.sleep(5.0)
        assert await ready(client) == READY

    play(scenario)


@pytest.mark.parametrize("outcome", THERE.values(), ids=THERE)
def test_whatever_a_replica_answers_it_is_there(outcome: Any) -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        for handle in handles.values():
            handle.outcome = outcome
        for _ in range(60):
            await asyncio.sleep(1.0)
            assert await ready(client) == READY

    play(scenario)


def test_only_quiet_models_are_probed_and_seldom() -> None:
    counts: list[int] = []

    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        body = {"model": "a", "query": {"text": "q"}, "passages": [{"text": "p"}]}
        for _ in range(60):
            await client.post("/v1/ranking", json=body)
            await asyncio.sleep(1.0)
        counts.extend(len([shard for shard in handles[name].shards if shard.query != "q"]) for name in MODELS)

    handles = play(scenario)

    assert counts[0] == 1  # the one that made it ready
    assert 17 <= counts[1] <= 21  # one in three seconds
    assert sum(map(len, (handle.shards for handle in handles.values()))) == 60 + sum(counts)  # and none after the end


def test_a_probe_asks_the_replica_for_an_answer_before_it_gives_up() -> None:
    """So a busy replica refuses the pair in time, and that is an answer."""

    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        await asyncio.sleep(4.0)

    probe = play(scenario)["a"].shards[-1]
    assert probe.timeout_s == 2.0
    assert len(probe.passages) == 1


def test_what_a_replica_reports_with_a_probe_is_counted() -> None:
    """A replica tells each batch once, with whichever answer comes next."""
    report = ReplicaReport("host:1", ((100, 0.5),), 2.0, 0, 0, 0, 50.0, 0, None, "int8")

    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        handles["a"].outcome = replace(SCORED, report=report)
        await asyncio.sleep(4.0)
        assert 'rerank_batch_tokens_count{model="a"} 1.0' in (await client.get("/metrics")).text
        models = (await client.get("/v1/metadata")).json()["modelInfo"]
        assert [model["precision"] for model in models] == ["int8", None]

    play(scenario)


def test_a_request_that_is_answered_makes_a_model_reachable_at_once() -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        for handle in handles.values():
            handle.outcome = None
        await asyncio.sleep(11.0)
        assert (await ready(client))[0] == 503
        handles["a"].outcome = SCORED
        await client.post("/v1/ranking", json={"query": {"text": "q"}, "passages": [{"text": "p"}]})
        assert await ready(client) == (200, "Service is ready, except for: b", ["b"])

    play(scenario)


def test_an_ingress_that_slept_does_not_take_its_own_silence_for_its_replicas() -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTime)
        loop._jumping.now_s += 60.0
        assert await ready(client) == READY

    play(scenario)


def test_a_model_that_may_have_no_replica_is_neither_probed_nor_counted() -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        await asyncio.sleep(30.0)
        assert await ready(client) == READY
        assert handles["b"].shards == []
        handles["a"].outcome = None
        await asyncio.sleep(11.0)
        assert (await ready(client))[0] == 503

    play(scenario, models=[{"id": "a"}, {"id": "b", "autoscaling": {"min_replicas": 0}}])


def test_a_pool_is_probed_by_the_model_asked_last_and_may_take_long_to_load_another() -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        await client.post("/v1/ranking", json={"model": "b", "query": {"text": "q"}, "passages": [{"text": "p"}]})
        await asyncio.sleep(10.0)
        assert [len(handles[name].shards) for name in MODELS] == [1, 4]  # `a` made it ready, `b` keeps it so
        handles["b"].outcome = None
        await asyncio.sleep(30.0)
        assert await ready(client) == READY
        handles["b"].outcome = ActorDiedError()
        await asyncio.sleep(11.0)
        assert (await ready(client))[0] == 503

    pool = {"name": "small", "models_per_replica": 1}
    play(scenario, models=[{"id": name, "pool": "small"} for name in MODELS], pools=[pool])
