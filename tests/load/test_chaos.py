"""Faults under load on a Ray cluster of three nodes on this machine: `make chaos`.

Every answer is compared with the engine's own logits. `ledger` keeps the results for each fault.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema

from benchmarks.ports import free_port
from rerank_service.config import RerankConfig
from rerank_service.engine import load_engine
from rerank_service.tools.deployment.ray_environment import RAY_ENVIRONMENT
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from tests.load import ledger
from tests.load.faulty import POISON, Fault, break_one, broken_pid, faulty_application
from tests.load.traffic import Question, Traffic, Verdicts
from tests.service.running import Reference, assert_ranked, ranking_body, serve_client

pytestmark = [pytest.mark.load, pytest.mark.timeout(900)]

_MODEL = "chaos/tiny-llama"
_DEADLINE_S = 60.0
_CLIENTS = 6
_RECOVERY_S = 5.0
"""Longest time without an answer after a process or a node has died."""
_WHOLE_LIMIT_S = 180.0
_DEVICE = "device_sim"
_WORDS = ["bread", "river", "kidney", "contract", "token", "winter", "harbour", "price", "bridge", "model"]


@dataclass
class Grid:
    """The cluster, and the service that runs on it."""

    cluster: Any
    workers: list[Any]
    url: str
    config: RerankConfig
    checkpoint: Path
    reference: Reference
    questions: list[Question]
    version: int = 1
    others: list[dict[str, Any]] = field(default_factory=list)
    """Further applications, in addition to the one at `/`."""

    def add_worker(self) -> None:
        self.workers.append(self.cluster.add_node(num_cpus=2, resources={_DEVICE: 3}, include_dashboard=False))

    def deploy(self, batching: dict[str, Any] | None = None) -> None:
        """Deploys the whole target state. A new `version` replaces all replicas; a change of `batching` replaces
        none."""
        args = self.config.model_dump(mode="json")
        args["models"][0]["aliases"] = [f"version-{self.version}"]
        overrides = []
        if batching is not None:
            knobs = args["models"][0]["batching"] | batching
            overrides = [{"name": self.deployment, "user_config": knobs}]
        application = {
            "name": "rerank",
            "route_prefix": "/",
            "import_path": "rerank_service.app:build_app",
            "args": args,
            "deployments": overrides,
        }
        serve_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application, *self.others]}))

    def update(self) -> None:
        """Starts the replacement of all replicas and ingresses."""
        self.version += 1
        self.deploy()

    def details(self, application: str, deployment: str) -> dict[str, Any]:
        """Serve's details of a deployment."""
        details: dict[str, Any] = serve_client().get_serve_details()["applications"][application]
        return details["deployments"][deployment]

    def pids(self, deployment: str, application: str = "rerank") -> list[int]:
        """Process ids of the running replicas."""
        replicas = self.details(application, deployment)["replicas"]
        return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING"]

    def node_ids(self, deployment: str) -> list[str]:
        """Nodes of the replicas of the application at `/`."""
        return [replica["node_id"] for replica in self.details("rerank", deployment)["replicas"]]

    @property
    def deployment(self) -> str:
        """Name of the model's deployment, which is the same in every application."""
        return self.config.models[0].deployment_name

    def is_whole(self) -> bool:
        application = serve_client().get_serve_details()["applications"]["rerank"]
        return (
            application["status"] == "RUNNING"
            and len(self.pids(self.deployment)) == self.config.models[0].autoscaling.min_replicas
            and len(self.pids("ingress")) == self.config.service.ingress.min_replicas
        )

    def is_version_served(self) -> bool:
        """Whether the service is whole and no replica of an older version is left."""
        body = ranking_body(f"version-{self.version}", "which?", ["one"])
        return self.is_whole() and httpx.post(f"{self.url}/v1/ranking", json=body, timeout=5).status_code == 200


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """A head without devices and two workers with three devices each; three model replicas and two ingresses."""
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("chaos"), Architecture.LLAMA_BIDIREC, "tiny", dtype="float32")
    config = _config(checkpoint, {"min_replicas": 3, "max_replicas": 3}, {_DEVICE: 1})
    reference = Reference(load_engine(config.models[0]))
    with pytest.MonkeyPatch.context() as environment:
        for name, value in RAY_ENVIRONMENT.items():
            environment.setenv(name, value)
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # replicas import tests.load.faulty
        environment.delenv(config.auth.keys_env, raising=False)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 1024 * 1024},
        )
        url = f"http://127.0.0.1:{free_port()}"
        grid = Grid(cluster, [], url, config, checkpoint, reference, _questions(reference))
        try:
            for _ in range(2):
                grid.add_worker()
            ray.init(address=cluster.address, log_to_driver=False)
            port = int(grid.url.rpartition(":")[2])
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            grid.deploy()
            asyncio.run(_until(lambda: _is_ready(grid.url) and grid.is_whole(), 240))
            yield grid
        finally:
            with suppress(Exception):
                serve.shutdown()
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(scope="module")
def faults(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An application at `/faulty` with four replicas that can be broken. The value is the folder of `break_one`."""
    folder = tmp_path_factory.mktemp("faults")
    config = _config(grid.checkpoint, {"min_replicas": 4, "max_replicas": 4}, {})
    with _beside(grid, faulty_application("faulty", config, folder), 4):
        yield folder


@pytest.fixture
def elastic(grid: Grid, tmp_path: Path) -> Iterator[None]:
    """An application at `/elastic` with one to four replicas of a known speed, scaled by load."""
    scaling = {"min_replicas": 1, "max_replicas": 4, "upscale_delay_s": 1}
    config = _config(grid.checkpoint, scaling, {})
    with _beside(grid, faulty_application("elastic", config, tmp_path, tokens_per_s=1500), 1):
        yield


class _beside:  # noqa: N801 - a context manager
    """Deploys another application while the block runs, and waits until its replicas run."""

    def __init__(self, grid: Grid, application: dict[str, Any], num_replicas: int) -> None:
        self._grid = grid
        self._application = application
        self._num_replicas = num_replicas

    def __enter__(self) -> None:
        grid, name = self._grid, self._application["name"]
        grid.others.append(self._application)
        grid.deploy()
        ready = f"{grid.url}/{name}"
        asyncio.run(
            _until(lambda: _is_ready(ready) and len(grid.pids(grid.deployment, name)) == self._num_replicas, 240)
        )

    def __exit__(self, *_: object) -> None:
        self._grid.others.remove(self._application)
        self._grid.deploy()


def test_no_memory_is_kept(grid: Grid) -> None:
    """Measures the second half of 10,000 requests, because caches of kernels by batch size fill during the first
    half."""
    processes = [psutil.Process(pid) for pid in (*grid.pids(grid.deployment), *grid.pids("ingress"))]
    bodies = [question.body for question in grid.questions if len(question.logits) <= 10]
    failures = asyncio.run(_send(grid, bodies, 5_000))
    before = [process.memory_info().rss for process in processes]
    failures += asyncio.run(_send(grid, bodies, 5_000))
    growth_mb = [(process.memory_info().rss - rss) / 2**20 for process, rss in zip(processes, before, strict=True)]

    print(f"\nMB that 5,000 requests leave in each process: {', '.join(f'{mb:.1f}' for mb in growth_mb)}")
    assert failures == 0
    assert max(growth_mb) < _MAX_GROWTH_MB


_MAX_GROWTH_MB = 10.0
"""About two kilobytes per request; `benchmarks/soak` measures a longer run."""


@pytest.mark.parametrize(
    ("fault", "cause"),
    {
        "none": lambda _: None,
        "SIGKILL of a model replica": lambda grid: os.kill(grid.pids(grid.deployment)[0], signal.SIGKILL),
        "SIGKILL of an ingress": lambda grid: os.kill(grid.pids("ingress")[0], signal.SIGKILL),
        "a replica at a fifth of its speed for 6 s": lambda grid: _slow_down(grid.pids(grid.deployment)[0], 6.0),
        "SIGSTOP of a model replica": lambda grid: os.kill(grid.pids(grid.deployment)[0], signal.SIGSTOP),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_request_is_lost(grid: Grid, fault: str, cause: Callable[[Grid], None]) -> None:
    verdicts = asyncio.run(_under_load(grid, fault, lambda: cause(grid), grid.is_whole))

    _assert_nothing_failed(verdicts)
    if fault.startswith("SIGKILL"):
        assert verdicts.longest_gap_s <= _RECOVERY_S


def test_a_rolling_update_loses_no_request(grid: Grid) -> None:
    _assert_nothing_failed(
        asyncio.run(_under_load(grid, "rolling update of all replicas", grid.update, grid.is_version_served))
    )


def test_a_second_update_while_the_first_is_rolling_loses_no_request(grid: Grid) -> None:
    async def update_twice() -> None:
        before = set(grid.pids(grid.deployment))
        grid.update()
        await _until(lambda: not before.issuperset(grid.pids(grid.deployment)), _WHOLE_LIMIT_S)
        assert not before.isdisjoint(grid.pids(grid.deployment)), "the first update had already finished"
        grid.update()

    verdicts = asyncio.run(
        _under_load(grid, "two updates in a row", lambda: asyncio.run(update_twice()), grid.is_version_served)
    )

    _assert_nothing_failed(verdicts)


def test_no_request_is_lost_when_the_controller_dies(grid: Grid) -> None:
    before = set(grid.pids(grid.deployment)), set(grid.pids("ingress"))

    verdicts = asyncio.run(_under_load(grid, "SIGKILL of Serve's controller", _kill_controller, grid.is_whole))

    _assert_nothing_failed(verdicts)
    assert (set(grid.pids(grid.deployment)), set(grid.pids("ingress"))) == before


@pytest.mark.usefixtures("elastic")
def test_a_restarted_controller_keeps_an_autoscaled_models_replicas(grid: Grid) -> None:
    """After the restart, Serve's controller has lost the state of the policy."""
    targets: list[int] = []
    before: set[int] = set()

    def has_four() -> bool:
        return len(grid.pids(grid.deployment, "elastic")) == 4

    def kill() -> None:
        before.update(grid.pids(grid.deployment, "elastic"))
        _kill_controller()

    def is_watched() -> bool:
        targets.append(grid.details("elastic", grid.deployment)["target_num_replicas"])
        return len(targets) >= 75 or targets[-1] < 4

    fault = "SIGKILL of the controller of an autoscaled model"
    verdicts = asyncio.run(
        _under_load(grid, fault, kill, is_watched, path="/elastic", num_clients=12, is_prepared=has_four)
    )

    assert min(targets) == 4
    assert set(grid.pids(grid.deployment, "elastic")) == before
    _assert_nothing_failed(verdicts)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (Fault.STICKY, "a device that fails for good (1 of 4)"),
        (Fault.HANG, "a forward pass that never returns (1 of 4)"),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_a_broken_device_is_replaced(grid: Grid, faults: Path, fault: Fault, name: str) -> None:
    before = set(grid.pids(grid.deployment, "faulty"))

    def is_replaced() -> bool:
        pids = grid.pids(grid.deployment, "faulty")
        return (broken := broken_pid(faults, fault)) is not None and broken not in pids and len(pids) == 4

    verdicts = asyncio.run(_under_load(grid, name, lambda: break_one(faults, fault), is_replaced, path="/faulty"))

    _assert_nothing_failed(verdicts)
    assert before - set(grid.pids(grid.deployment, "faulty")) == {broken_pid(faults, fault)}


def test_a_poison_kills_two_replicas_and_no_more(grid: Grid, faults: Path) -> None:
    """Four replicas, one request that kills the replica that scores it, and other requests that must succeed."""
    before = grid.pids(grid.deployment, "faulty")
    url = f"{grid.url}/faulty/v1/ranking"
    harmless, *_ = grid.questions

    async def ask() -> tuple[httpx.Response, list[httpx.Response]]:
        async with httpx.AsyncClient(timeout=_DEADLINE_S) as client:
            poisoned = asyncio.ensure_future(client.post(url, json=ranking_body(None, POISON, ["one", "two"])))
            others = [await client.post(url, json=harmless.body) for _ in range(50)]
            return await poisoned, others

    poisoned, others = asyncio.run(ask())

    assert poisoned.status_code == 503, poisoned.text
    assert poisoned.json()["detail"][0]["type"] == "replica_unavailable"
    for other in others:
        assert_ranked(other, harmless.logits)
    asyncio.run(_until(lambda: len(grid.pids(grid.deployment, "faulty")) == 4, _WHOLE_LIMIT_S))
    assert len([pid for pid in before if not psutil.pid_exists(pid)]) == 2


def test_clients_that_disconnect_do_not_affect_others(grid: Grid) -> None:
    fault = "clients that leave after 5 to 100 ms (a third of them)"
    _assert_nothing_failed(asyncio.run(_load_for(grid, fault, 12, _CLIENTS, leaving_share=0.3)))


def test_overload_is_refused_in_the_documented_form(grid: Grid) -> None:
    grid.deploy({"max_queued_tokens": 20_000})
    fault = "72 clients against a queue of 20,000 tokens"
    verdicts = asyncio.run(_load_for(grid, fault, 15, 12 * _CLIENTS))
    grid.deploy()

    assert verdicts.wrong == verdicts.doubled == verdicts.hung == verdicts.lost == 0
    assert not any("outside the envelope" in cause or "(!)" in cause for cause in verdicts.failed)


def test_a_nodes_death_costs_one_request_in_a_hundred_at_most(grid: Grid) -> None:
    """This test must run last, because it leaves the cluster with one worker fewer."""

    node = asyncio.run(_expendable_node(grid))

    def kill() -> None:
        grid.workers.remove(node)
        grid.cluster.remove_node(node, allow_graceful=False)

    verdicts = asyncio.run(_under_load(grid, "death of a node with its replicas", kill, grid.is_whole))

    assert verdicts.wrong == verdicts.doubled == verdicts.hung == 0
    assert verdicts.lost + verdicts.failed.total() <= max(1, verdicts.requests // 100)
    assert verdicts.longest_gap_s <= _RECOVERY_S


async def _expendable_node(grid: Grid) -> Any:
    """Returns a worker with a model replica, while other replicas and an ingress are elsewhere. Serve tries to spread
    replicas over the nodes, but may put all on one node; an update moves them.
    """
    while True:
        await _until(grid.is_version_served, _WHOLE_LIMIT_S)
        nodes = [Counter(grid.node_ids(name)) for name in (grid.deployment, "ingress")]
        for worker in grid.workers:
            if nodes[0][worker.node_id] and all(held.total() > held[worker.node_id] for held in nodes):
                return worker
        await asyncio.to_thread(grid.update)


async def _under_load(
    grid: Grid,
    fault: str,
    cause: Callable[[], None],
    is_over: Callable[[], bool],
    *,
    path: str = "",
    num_clients: int = _CLIENTS,
    is_prepared: Callable[[], bool] | None = None,
) -> Verdicts:
    """Sends load before, during and after a fault, until the service has recovered. Reported times start at the
    fault."""
    traffic = Traffic(f"{grid.url}{path}/v1/ranking", grid.questions, _DEADLINE_S, {})
    verdicts = Verdicts()
    await _until(grid.is_whole, _WHOLE_LIMIT_S)
    try:
        async with traffic.running(num_clients, fault) as verdicts:
            await asyncio.sleep(3)
            await _until(is_prepared or grid.is_whole, _WHOLE_LIMIT_S)
            verdicts.longest_s = verdicts.longest_gap_s = 0.0
            await asyncio.to_thread(cause)
            await asyncio.sleep(4)
            await _until(is_over, _WHOLE_LIMIT_S)
            await asyncio.sleep(3)
    finally:
        ledger.record(fault, verdicts)
    return verdicts


async def _load_for(
    grid: Grid, fault: str, duration_s: float, num_clients: int, leaving_share: float = 0.0
) -> Verdicts:
    traffic = Traffic(f"{grid.url}/v1/ranking", grid.questions, _DEADLINE_S, {})
    async with traffic.running(num_clients, fault, leaving_share) as verdicts:
        await asyncio.sleep(duration_s)
    ledger.record(fault, verdicts)
    return verdicts


def _assert_nothing_failed(verdicts: Verdicts) -> None:
    assert verdicts.wrong == verdicts.doubled == verdicts.hung == verdicts.lost == 0
    assert not verdicts.failed


async def _send(grid: Grid, bodies: list[dict[str, Any]], count: int) -> int:
    """Sends `count` requests and returns how many failed."""
    pending = iter(range(count))

    async def ask_on(client: httpx.AsyncClient) -> int:
        failures = 0
        for number in pending:
            response = await client.post(f"{grid.url}/v1/ranking", json=bodies[number % len(bodies)])
            failures += response.status_code != 200
        return failures

    async with httpx.AsyncClient(timeout=_DEADLINE_S) as client:
        return sum(await asyncio.gather(*(ask_on(client) for _ in range(16))))


def _kill_controller() -> None:
    pid: int = ray.get(serve_client()._controller.get_pid.remote())
    os.kill(pid, signal.SIGKILL)


def _slow_down(pid: int, duration_s: float) -> None:
    """Stops a replica for 80 of every 100 ms, so that it runs at a fifth of its speed."""
    stop_at = time.monotonic() + duration_s
    while time.monotonic() < stop_at:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.08)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)


async def _until(holds: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        with suppress(Exception):  # the controller may be restarting
            if await asyncio.to_thread(holds):
                return
        assert time.monotonic() < deadline, "the service did not become whole again"
        await asyncio.sleep(0.3)


def _is_ready(url: str) -> bool:
    return httpx.get(f"{url}/v1/health/ready", timeout=5).status_code == 200


def _config(checkpoint: Path, autoscaling: dict[str, Any], resources: dict[str, float]) -> RerankConfig:
    model = {
        "id": _MODEL,
        "checkpoint": {"source": str(checkpoint)},
        "engine": {"dtype": "float32", "device": "cpu", "num_threads": 1},
        "batching": {"max_batch_tokens": 1024},
        "replica": {"num_cpus": 0.05, "resources": resources, "graceful_shutdown_timeout_s": 20},
        "autoscaling": autoscaling,
    }
    ingress = {"min_replicas": 2, "max_replicas": 2, "shard_tokens": 1500}
    limits = {"request_timeout_s": _DEADLINE_S}
    return RerankConfig.model_validate({"models": [model], "service": {"ingress": ingress}, "limits": limits})


def _questions(reference: Reference) -> list[Question]:
    """Mostly small requests and some large ones, like real traffic."""
    rng = random.Random(0)
    questions = []
    for number in range(40):
        passages = [
            " ".join(rng.choices(_WORDS, k=rng.randint(3, 40))) for _ in range(rng.choice([1, 1, 5, 10, 20, 60]))
        ]
        query = f"question {number} about {rng.choice(_WORDS)}"
        questions.append(Question(ranking_body(_MODEL, query, passages), reference.logits(query, passages)))
    return questions
