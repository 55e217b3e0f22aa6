"""Faults under load on a Ray cluster of three nodes on this machine: `make chaos`, about nine minutes.

Every answer is held against the engine's own logits. Prints a table and one JSON line.
"""

import asyncio
import json
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema
from rich.console import Console
from rich.table import Table

from rerank_service.checkpoints.make import Architecture, make_checkpoint
from rerank_service.config import RerankConfig
from rerank_service.engine import load_engine
from rerank_service.ray_environment import RAY_ENVIRONMENT
from tests.load.poison import MODEL as POISON_MODEL
from tests.load.poison import POISON, poison_application
from tests.load.traffic import Question, Traffic, Verdicts
from tests.service.running import Reference, ranking_body, serve_client

pytestmark = [pytest.mark.load, pytest.mark.timeout(1500)]

_MODEL = "chaos/tiny-llama"
_DEADLINE_S = 60.0
_CLIENTS = 6
_RECOVERY_S = 5.0
_DEVICE = "device_sim"
_WORDS = ["bread", "river", "kidney", "contract", "token", "winter", "harbour", "price", "bridge", "model"]


@dataclass
class Grid:
    """The cluster and the service on it."""

    cluster: Any
    workers: list[Any]
    url: str
    config: RerankConfig
    questions: list[Question]

    def add_worker(self) -> None:
        self.workers.append(self.cluster.add_node(num_cpus=2, resources={_DEVICE: 3}, include_dashboard=False))

    def deploy(self, batching: dict[str, Any] | None = None, version: str = "1", poison: bool = False) -> None:
        """The whole target state; another `version` replaces every replica, other `batching` none."""
        args = self.config.model_dump(mode="json")
        args["models"][0]["aliases"] = [f"version-{version}"]
        overrides = []
        if batching is not None:
            knobs = args["models"][0]["batching"] | batching
            overrides = [{"name": self.config.models[0].deployment_name, "user_config": knobs}]
        application = {
            "name": "rerank",
            "route_prefix": "/",
            "import_path": "rerank_service.app:build_app",
            "args": args,
            "deployments": overrides,
        }
        others = [poison_application()] if poison else []
        schema = ServeDeploySchema.model_validate({"applications": [application, *others]})
        serve_client().deploy_apps(schema)

    def pids(self, deployment: str, application: str = "rerank") -> list[int]:
        details = serve_client().get_serve_details()["applications"][application]["deployments"].get(deployment, {})
        return [replica["pid"] for replica in details.get("replicas", []) if replica["state"] == "RUNNING"]

    @property
    def deployment(self) -> str:
        return self.config.models[0].deployment_name

    def is_whole(self) -> bool:
        application = serve_client().get_serve_details()["applications"]["rerank"]
        return (
            application["status"] == "RUNNING"
            and len(self.pids(self.deployment)) == self.config.models[0].autoscaling.min_replicas
            and len(self.pids("ingress")) == self.config.service.ingress.min_replicas
        )


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """A head without devices and two workers with three each, three model replicas and two ingresses."""
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("chaos"), Architecture.LLAMA_BIDIREC, "tiny", dtype="float32")
    config = _config(checkpoint)
    reference = Reference(load_engine(config.models[0]))
    with pytest.MonkeyPatch.context() as environment:
        for name, value in RAY_ENVIRONMENT.items():
            environment.setenv(name, value)
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # replicas load tests.load.poison
        environment.delenv(config.auth.keys_env, raising=False)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 1024 * 1024},
        )
        grid = Grid(cluster, [], f"http://127.0.0.1:{_free_port()}", config, _questions(reference))
        try:
            for _ in range(2):
                grid.add_worker()
            ray.init(address=cluster.address, log_to_driver=False)
            port = int(grid.url.rpartition(":")[2])
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            grid.deploy()
            asyncio.run(_until(lambda: _is_ready(grid), 240))
            yield grid
        finally:
            with suppress(Exception):
                serve.shutdown()
            ray.shutdown()
            cluster.shutdown()


def test_no_memory_is_kept(grid: Grid) -> None:
    """Of 20,000 requests, the second half: in the first, caches of kernels by batch size fill."""
    asyncio.run(_until(grid.is_whole, 120))
    processes = [psutil.Process(pid) for pid in (*grid.pids(grid.deployment), *grid.pids("ingress"))]
    bodies = [question.body for question in grid.questions if len(question.logits) <= 10]
    failures = asyncio.run(_send(grid, bodies, 10_000))
    before = [process.memory_info().rss for process in processes]
    failures += asyncio.run(_send(grid, bodies, 10_000))
    growth_mb = [(process.memory_info().rss - rss) / 2**20 for process, rss in zip(processes, before, strict=True)]

    Console(width=150).print(
        f"MB that 10,000 requests leave in each process: {', '.join(f'{mb:.1f}' for mb in growth_mb)}"
    )
    assert failures == 0
    assert max(growth_mb) < _MAX_GROWTH_MB


def test_a_poison_kills_two_replicas_and_no_more(grid: Grid) -> None:
    """Four replicas, one request that kills whoever scores it, others that go on."""
    grid.deploy(poison=True)
    asyncio.run(_until(lambda: _is_ready_at(f"{grid.url}/poison") and len(grid.pids(POISON_MODEL, "poison")) == 4, 120))
    before = set(grid.pids(POISON_MODEL, "poison"))
    url = f"{grid.url}/poison/v1/ranking"

    async def ask() -> tuple[httpx.Response, list[int]]:
        async with httpx.AsyncClient(timeout=60) as client:
            poisoned = asyncio.ensure_future(client.post(url, json=ranking_body(None, POISON, ["one", "two"])))
            others = [await client.post(url, json=ranking_body(None, "harmless", ["one", "two"])) for _ in range(50)]
            return await poisoned, [other.status_code for other in others]

    poisoned, others = asyncio.run(ask())

    assert poisoned.status_code == 503, poisoned.text
    assert poisoned.json()["detail"][0]["type"] == "replica_unavailable"
    assert set(others) == {200}
    time.sleep(2)
    assert len([pid for pid in before if not psutil.pid_exists(pid)]) == 2
    grid.deploy()
    asyncio.run(_until(grid.is_whole, 120))


def test_chaos(grid: Grid) -> None:
    phases = asyncio.run(_run(grid))
    _print(phases)

    total = _total(verdicts for verdicts, _ in phases.values())
    line = json.dumps({key: total[key] for key in ("requests", "wrong", "lost", "doubled", "hung", "failed")})
    Console(width=10_000).print(line, highlight=False, soft_wrap=True)
    assert total["wrong"] == total["doubled"] == total["hung"] == 0
    assert not any("outside the envelope" in cause or "(!)" in cause for cause in total["failed"])
    for name in phases.keys() - {"a node killed", "overload"}:
        assert not phases[name][0].failed, name
        assert phases[name][0].lost == 0, name
    assert all(recovered_s <= _RECOVERY_S for name, (_, recovered_s) in phases.items() if name in _MUST_RECOVER)
    node = phases["a node killed"][0]
    assert node.lost + node.failed.total() <= max(1, node.requests // 100)


async def _send(grid: Grid, bodies: list[dict[str, Any]], count: int) -> int:
    """How many of so many requests failed."""
    pending = iter(range(count))

    async def ask_on(client: httpx.AsyncClient) -> int:
        failures = 0
        for number in pending:
            response = await client.post(f"{grid.url}/v1/ranking", json=bodies[number % len(bodies)])
            failures += response.status_code != 200
        return failures

    async with httpx.AsyncClient(timeout=_DEADLINE_S) as client:
        return sum(await asyncio.gather(*(ask_on(client) for _ in range(16))))


_MAX_GROWTH_MB = 10.0
"""A kilobyte kept of each request."""
_MUST_RECOVER = {"a model replica killed", "a node killed", "an ingress killed"}


async def _run(grid: Grid) -> dict[str, tuple[Verdicts, float]]:
    """Verdicts of each phase, and seconds from its fault to the next right answer after an error."""
    traffic = Traffic(f"{grid.url}/v1/ranking", grid.questions, _DEADLINE_S, {})
    faults: dict[str, Callable[[], None]] = {
        "calm": lambda: None,
        "a model replica killed": lambda: os.kill(grid.pids(grid.deployment)[0], signal.SIGKILL),
        "an ingress killed": lambda: os.kill(grid.pids("ingress")[0], signal.SIGKILL),
        "a slow replica": lambda: _slow_down(grid.pids(grid.deployment)[0], 6.0),
        "a model replica stopped": lambda: os.kill(grid.pids(grid.deployment)[0], signal.SIGSTOP),
        "rolling update": lambda: grid.deploy(version="2"),
        "a node killed": lambda: grid.cluster.remove_node(grid.workers.pop(), allow_graceful=False),
    }
    phases: dict[str, tuple[Verdicts, float]] = {}
    for seed, (name, fault) in enumerate(faults.items()):
        async with traffic.running(_CLIENTS, seed) as verdicts:
            await asyncio.sleep(3)
            verdicts.longest_gap_s = 0.0
            await asyncio.to_thread(fault)
            await asyncio.sleep(4)
            await _until(grid.is_whole, 120)
            await asyncio.sleep(3)
        phases[name] = (verdicts, verdicts.longest_gap_s)
        _print({name: phases[name]})
    async with traffic.running(_CLIENTS, 100, leaving_share=0.3) as verdicts:
        await asyncio.sleep(12)
    phases["clients leave"] = (verdicts, verdicts.longest_gap_s)
    await asyncio.to_thread(grid.deploy, {"max_queued_tokens": 20_000}, "2")
    async with traffic.running(12 * _CLIENTS, 101) as verdicts:
        await asyncio.sleep(15)
    phases["overload"] = (verdicts, verdicts.longest_gap_s)
    return phases


def _slow_down(pid: int, duration_s: float) -> None:
    """A replica at a fifth of its speed: stopped for 80 of every 100 ms."""
    stop_at = time.monotonic() + duration_s
    while time.monotonic() < stop_at:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.08)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)


async def _until(holds: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        with suppress(Exception):  # the controller itself may be moving
            if await asyncio.to_thread(holds):
                return
        assert time.monotonic() < deadline, "the service did not become whole again"
        await asyncio.sleep(0.3)


def _is_ready(grid: Grid) -> bool:
    return _is_ready_at(grid.url) and grid.is_whole()


def _is_ready_at(url: str) -> bool:
    return httpx.get(f"{url}/v1/health/ready", timeout=5).status_code == 200


def _config(checkpoint: Path) -> RerankConfig:
    model = {
        "id": _MODEL,
        "checkpoint": {"source": str(checkpoint)},
        "engine": {"dtype": "float32", "device": "cpu", "num_threads": 1},
        "batching": {"max_batch_tokens": 1024},
        "replica": {"num_cpus": 0.1, "resources": {_DEVICE: 1}, "graceful_shutdown_timeout_s": 20},
        "autoscaling": {"min_replicas": 3, "max_replicas": 3},
    }
    ingress = {"min_replicas": 2, "max_replicas": 2, "shard_tokens": 1500}
    limits = {"request_timeout_s": _DEADLINE_S}
    return RerankConfig.model_validate({"models": [model], "service": {"ingress": ingress}, "limits": limits})


def _questions(reference: Reference) -> list[Question]:
    """Most are small and some are not, as real ones."""
    rng = random.Random(0)
    questions = []
    for number in range(40):
        passages = [
            " ".join(rng.choices(_WORDS, k=rng.randint(3, 40))) for _ in range(rng.choice([1, 1, 5, 10, 20, 60]))
        ]
        query = f"question {number} about {rng.choice(_WORDS)}"
        questions.append(Question(ranking_body(_MODEL, query, passages), reference.logits(query, passages)))
    return questions


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _total(all_verdicts: Any) -> dict[str, Any]:
    total: dict[str, Any] = {"failed": Counter()}
    for verdicts in all_verdicts:
        for key, value in verdicts.as_json().items():
            total[key] = total.get(key, Counter() if key == "failed" else 0) + (
                Counter(value) if key == "failed" else value
            )
    return total | {"failed": dict(total["failed"])}


def _print(phases: dict[str, tuple[Verdicts, float]]) -> None:
    table = Table("fault", "requests", "right", "wrong", "lost", "hung", "failed", "longest s", "gap s")
    for name, (verdicts, gap_s) in phases.items():
        failed = ", ".join(f"{cause}: {count}" for cause, count in verdicts.failed.items()) or "-"
        counts = (verdicts.requests, verdicts.ok, verdicts.wrong, verdicts.lost, verdicts.hung)
        table.add_row(name, *map(str, counts), failed, f"{verdicts.longest_s:.1f}", f"{gap_s:.1f}")
    Console(width=150).print(table)
