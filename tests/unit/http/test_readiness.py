"""Tests when an ingress reports that it is ready, with the real ranker and router in virtual time. The replicas are
stand-ins."""

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
UNREACHABLE = {
    "no replica": DeploymentUnavailableError(None),  # type: ignore[arg-type]
    "dead": ActorDiedError(),
    "silent": None,
}
REACHABLE = {
    "answers": SCORED,
    "full": RayTaskError("score", "traceback", QueueFull(10, 10)),
    "bug": RayTaskError("score", "traceback", ValueError()),
}


class _JumpingSelector(selectors.SelectSelector):
    """Never waits, but advances its clock by the time it would have waited."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # only while a thread ends
            return super().select(None)
        self.now_s += timeout
        return super().select(0)


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer, so that no test waits."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


class Handle:
    """The `score` method of a deployment's handle, with an outcome that a test can change."""

    def __init__(self, outcome: Any = SCORED) -> None:
        self.outcome = outcome
        self.shards: list[Shard] = []

    def remote(self, shard: Shard) -> Response:
        self.shards.append(shard)
        return Response(self.outcome)


Scenario = Callable[[httpx.AsyncClient, dict[str, Handle]], Coroutine[Any, Any, None]]


def play(scenario: Scenario, **settings: Any) -> dict[str, Handle]:
    """Runs a scenario against an ingress with `models`, by default two. With `starting`, no replica runs
    yet."""
    models = settings.pop("models", [{"id": name} for name in MODELS])
    first_outcome = ActorDiedError() if settings.pop("starting", False) else SCORED
    checkpoint = {"checkpoint": {"source": "/somewhere"}}
    config = RerankConfig.model_validate({"models": [checkpoint | model for model in models], **settings})
    handles = {model.id: Handle(first_outcome) for model in config.models}

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


@pytest.mark.parametrize("outcome", UNREACHABLE.values(), ids=UNREACHABLE)
def test_an_ingress_without_a_reachable_replica_for_ten_seconds_is_not_ready_until_one_answers(outcome: Any) -> None:
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


def test_a_starting_model_is_logged_every_thirty_seconds_and_only_a_later_loss_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        await asyncio.sleep(65.0)
        handles["a"].outcome = SCORED
        await asyncio.sleep(5.0)
        handles["a"].outcome = ActorDiedError()
        await asyncio.sleep(11.0)

    with caplog.at_level("INFO", "rerank_service.http.readiness"):
        play(scenario, starting=True, models=[{"id": "a"}])

    told = [(one.levelname, one.getMessage()) for one in caplog.records if one.name.endswith("readiness")]
    waiting = ("INFO", "waiting for the first replica of model=a")
    assert told == [waiting] * 3 + [("INFO", "ready model=a"), ("WARNING", "no replica answers model=a")]


@pytest.mark.parametrize("outcome", UNREACHABLE.values(), ids=UNREACHABLE)
def test_an_unreachable_model_among_others_is_named(outcome: Any) -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        handles["b"].outcome = outcome
        await asyncio.sleep(11.0)
        assert await ready(client) == (200, "Service is ready, except for: b", ["b"])
        handles["b"].outcome = SCORED
        await asyncio.sleep(5.0)
        assert await ready(client) == READY

    play(scenario)


@pytest.mark.parametrize("outcome", REACHABLE.values(), ids=REACHABLE)
def test_every_answer_of_a_replica_proves_it_reachable(outcome: Any) -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        for handle in handles.values():
            handle.outcome = outcome
        for _ in range(60):
            await asyncio.sleep(1.0)
            assert await ready(client) == READY

    play(scenario)


def test_only_idle_models_are_probed_every_three_seconds() -> None:
    counts: list[int] = []

    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        body = {"model": "a", "query": {"text": "q"}, "passages": [{"text": "p"}]}
        for _ in range(60):
            await client.post("/v1/ranking", json=body)
            await asyncio.sleep(1.0)
        counts.extend(len([shard for shard in handles[name].shards if shard.query != "q"]) for name in MODELS)

    handles = play(scenario)

    assert counts[0] == 1  # its test pair
    assert 17 <= counts[1] <= 21  # one probe every three seconds
    assert sum(map(len, (handle.shards for handle in handles.values()))) == 60 + sum(counts)  # no probes afterwards


def test_a_probe_gives_the_replica_less_time_than_itself() -> None:
    """A busy replica then refuses the pair before the probe gives up, and a refusal counts as an answer."""

    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        await asyncio.sleep(4.0)

    probe = play(scenario)["a"].shards[-1]
    assert probe.timeout_s == 2.0
    assert len(probe.passages) == 1


def test_reports_that_come_with_a_probe_are_counted() -> None:
    """A replica reports each batch only once, with its next answer."""
    report = ReplicaReport("host:1", ((100, 0.5),), 2.0, 0, 0, 0, 50.0, 0, None, "int8")

    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        handles["a"].outcome = replace(SCORED, report=report)
        await asyncio.sleep(4.0)
        assert 'rerank_batch_tokens_count{model="a"} 1.0' in (await client.get("/metrics")).text
        models = (await client.get("/v1/metadata")).json()["modelInfo"]
        assert [model["precision"] for model in models] == ["int8", None]

    play(scenario)


def test_an_answered_request_makes_a_model_reachable_at_once() -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        for handle in handles.values():
            handle.outcome = None
        await asyncio.sleep(11.0)
        assert (await ready(client))[0] == 503
        handles["a"].outcome = SCORED
        await client.post("/v1/ranking", json={"query": {"text": "q"}, "passages": [{"text": "p"}]})
        assert await ready(client) == (200, "Service is ready, except for: b", ["b"])

    play(scenario)


def test_a_paused_ingress_does_not_call_its_replicas_unreachable() -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTime)
        loop._jumping.now_s += 60.0
        assert await ready(client) == READY

    play(scenario)


def test_a_model_that_scales_to_zero_is_neither_probed_nor_counted() -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        await asyncio.sleep(30.0)
        assert await ready(client) == READY
        assert handles["b"].shards == []
        handles["a"].outcome = None
        await asyncio.sleep(11.0)
        assert (await ready(client))[0] == 503

    play(scenario, models=[{"id": "a"}, {"id": "b", "autoscaling": {"min_replicas": 0}}])


def test_a_pool_is_probed_with_the_model_that_answered_last_and_may_take_long_to_load_another() -> None:
    async def scenario(client: httpx.AsyncClient, handles: dict[str, Handle]) -> None:
        await client.post("/v1/ranking", json={"model": "b", "query": {"text": "q"}, "passages": [{"text": "p"}]})
        await asyncio.sleep(10.0)
        assert [len(handles[name].shards) for name in MODELS] == [
            1,
            4,
        ]  # `a` received the test pair; `b` received the request and then probes
        handles["b"].outcome = None
        await asyncio.sleep(30.0)
        assert await ready(client) == READY
        handles["b"].outcome = ActorDiedError()
        await asyncio.sleep(11.0)
        assert (await ready(client))[0] == 503

    pool = {"name": "small", "models_per_replica": 1}
    play(scenario, models=[{"id": name, "pool": "small"} for name in MODELS], pools=[pool])
