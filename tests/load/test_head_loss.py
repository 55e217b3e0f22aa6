"""The head dies and restarts with its state in Redis, while the workers keep serving.

The cluster follows the recipe for hosts without Kubernetes, on three addresses of this machine.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from benchmarks.ports import free_port
from rerank_service.config import load_config
from rerank_service.engine import load_engine
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from tests.bare_metal import BARE_METAL, HEAD, Hosts
from tests.load import ledger
from tests.load.traffic import Question, Traffic, Verdicts
from tests.programs import needs_program
from tests.service.running import Reference, ranking_body

pytestmark = [
    pytest.mark.load,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of this machine on Linux only"),
    needs_program("redis-server", "redis-server"),
]

_MODEL = "tiny"
_DEADLINE_S = 60.0
_CLIENTS = 4
_AWAY_S = 15.0
_LIMIT_S = 180.0
_STARTS = 3
_PASSWORD = "of-the-tests"


@dataclass(frozen=True)
class Cluster:
    """A head without replicas, two workers, and a Redis that outlives the head."""

    hosts: Hosts
    serve_file: Path
    head_options: list[str]
    workers_url: str
    questions: list[Question]

    def kill_head(self) -> None:
        """Kills all processes of the head at once, as a power cut would."""
        session = (self._state / HEAD / "pid").read_text(encoding="utf-8").strip()
        listed = subprocess.run(["ps", "-o", "pid=", "--sid", session], capture_output=True, text=True, check=False)
        for pid in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def start_head(self) -> None:
        """Starts the head again at the same address, as a service manager would. Retries, because Ray's own start may
        time out on a busy machine."""
        environment = self.hosts.environment | {"NODE_IP": HEAD, "RERANK_STATE": str(self._state)}
        command = ["bash", str(self._state / "node.sh"), "start", "head", *self.head_options]
        for _ in range(_STARTS):
            # With this file, Ray would mistake the workers on this machine for a running head.
            (self.hosts.folder / "r" / "ray_current_cluster").unlink(missing_ok=True)
            started = subprocess.run(command, env=environment, check=False, capture_output=True, timeout=_LIMIT_S)
            if started.returncode == 0:
                return
            self.kill_head()  # the head's remaining processes
        pytest.fail(f"the head did not start {_STARTS} times: {started.stderr.decode()[-2000:]}")

    def deploy(self, version: str) -> None:
        """Deploys another version, which replaces every replica."""
        document = yaml.safe_load(self.serve_file.read_text(encoding="utf-8"))
        for application in document["applications"]:
            for model in application["args"].get("models", []):
                model["aliases"] = [version]
        self.serve_file.write_text(yaml.safe_dump(document), encoding="utf-8")
        self.hosts.run("deploy", str(self.serve_file))

    def replicas(self) -> dict[str, dict[int, str]]:
        """State of each replica, by deployment and process."""
        token = Path(self.hosts.environment["TOKEN"]).read_text(encoding="utf-8")
        url = f"http://{HEAD}:{self.hosts.ports[8265]}/api/serve/applications/"
        response = httpx.get(url, headers={"authorization": f"Bearer {token}"}, timeout=10)
        response.raise_for_status()
        return {
            name: {replica["pid"]: replica["state"] for replica in deployment["replicas"] if replica.get("pid")}
            for application in response.json()["applications"].values()
            for name, deployment in application["deployments"].items()
        }

    def is_whole(self) -> bool:
        """Whether two replicas of the model and two ingresses run, and no others."""
        replicas = self.replicas()
        return all(list(replicas[name].values()) == ["RUNNING"] * 2 for name in (_MODEL, "ingress"))

    def is_served(self, version: str) -> bool:
        """Whether an ingress of this version answers."""
        body = ranking_body(version, "which?", ["one"])
        return httpx.post(f"{self.workers_url}/v1/ranking", json=body, timeout=5).status_code == 200

    @property
    def _state(self) -> Path:
        return self.hosts.folder / HEAD / ".rerank-service"


@pytest.fixture
def redis_port() -> Iterator[int]:
    port = free_port()
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--requirepass",
        _PASSWORD,
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(["redis-server", *options, "--dir", folder], stdout=subprocess.DEVNULL)
        try:
            yield port
        finally:
            server.terminate()
            server.wait()


@pytest.fixture
def cluster(redis_port: int) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="rh-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)  # a short path, because the paths of Ray's sockets in it may have at most 107 characters
        workers_port = free_port()
        hosts, head_options = _hosts(folder, workers_port, redis_port)
        checkpoint = make_checkpoint(folder / "checkpoint", Architecture.LLAMA_BIDIREC, "tiny", dtype="float32")
        serve_file = folder / "serve.yaml"
        command = [str(Path(sys.executable).with_name("rerank-service")), "config", f"{_MODEL}={checkpoint}"]
        command += ["--replicas", "2:2", "--ingresses", "2:2", "--ingress-cpus", "0.5"]
        command += ["--port", str(hosts.ports[8000]), "--output", str(serve_file)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        reference = Reference(load_engine(load_config(serve_file).models[0]))
        url = f"http://127.0.0.1:{workers_port}"
        cluster = Cluster(hosts, serve_file, head_options, url, _questions(reference))
        try:
            hosts.run("up")
            cluster.deploy("version-1")
            asyncio.run(_until(lambda: cluster.is_served("version-1") and cluster.is_whole()))
            yield cluster
        finally:
            hosts.run("down", is_checked=False)
            for process in hosts.processes():
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def test_the_heads_death_costs_no_request_and_no_replica(cluster: Cluster) -> None:
    """Clients send requests to the workers' proxies while the head is down, while it restarts, and during an update."""
    before = cluster.replicas()

    async def lose_the_head() -> None:
        await asyncio.to_thread(cluster.kill_head)
        await asyncio.sleep(_AWAY_S)
        await asyncio.to_thread(cluster.start_head)
        await _until(cluster.is_whole)
        await asyncio.sleep(10)  # by then, Serve's controller has checked every replica again

    verdicts = asyncio.run(_under_load(cluster, "death of the head, with fault tolerance (15 s away)", lose_the_head))
    after = cluster.replicas()

    _assert_nothing_failed(verdicts)
    assert after == before, "a replica was restarted"

    async def update() -> None:
        await asyncio.to_thread(cluster.deploy, "version-2")
        await _until(lambda: cluster.is_served("version-2") and cluster.is_whole())

    verdicts = asyncio.run(_under_load(cluster, "rolling update after the head came back", update))

    _assert_nothing_failed(verdicts)
    assert all(before[name].keys().isdisjoint(pids) for name, pids in cluster.replicas().items())


async def _under_load(cluster: Cluster, fault: str, cause: Callable[[], Any]) -> Verdicts:
    traffic = Traffic(f"{cluster.workers_url}/v1/ranking", cluster.questions, _DEADLINE_S, {})
    verdicts = Verdicts()
    try:
        async with traffic.running(_CLIENTS, fault) as verdicts:
            await asyncio.sleep(3)
            verdicts.longest_s = verdicts.longest_gap_s = 0.0
            await cause()
            await asyncio.sleep(3)
    finally:
        ledger.record(fault, verdicts)
    return verdicts


def _assert_nothing_failed(verdicts: Verdicts) -> None:
    assert verdicts.wrong == verdicts.doubled == verdicts.hung == verdicts.lost == 0
    assert not verdicts.failed


async def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while True:
        with suppress(Exception):  # the head may be down
            if await asyncio.to_thread(holds):
                return
        assert time.monotonic() < deadline, "the cluster did not become whole again"
        await asyncio.sleep(0.5)


def _questions(reference: Reference) -> list[Question]:
    questions = []
    for number, count in enumerate([1, 1, 5, 10, 20, 60]):
        query, passages = f"question {number}", [f"{index} the bread and the river" for index in range(count)]
        questions.append(Question(ranking_body(_MODEL, query, passages), reference.logits(query, passages)))
    return questions


def _hosts(folder: Path, workers_port: int, redis_port: int) -> tuple[Hosts, list[str]]:
    """Three hosts, and the options of `ray start` on the head."""
    gcs, dashboard, http, *agents = (free_port() for _ in range(6))
    shared = ["--object-store-memory", "80000000", "--num-gpus", "0", "--dashboard-agent-listen-port"]
    head_options = ["--num-cpus", "0", "--redis-password", _PASSWORD, "--temp-dir", f"{folder}/r"]
    head_options += [*shared, str(agents[0])]
    hosts = Hosts.on_this_machine(
        folder,
        head_options,
        [["--num-cpus", "2", *shared, str(port)] for port in agents[1:]],
        {8000: http, 8265: dashboard, 52365: agents[0]},
        {
            "GCS_PORT": str(gcs),
            "DASHBOARD_PORT": str(dashboard),
            "PYTHONPATH": str(BARE_METAL.parents[1]),
            "RAY_REDIS_ADDRESS": f"127.0.0.1:{redis_port}",
            "RAY_external_storage_namespace": "rerank",
            # The head's proxy must die with the head: on one machine, it would otherwise share a port with the workers'
            # proxies.
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(workers_port),
        },
    )
    return hosts, ["--port", str(gcs), "--dashboard-port", str(dashboard), *head_options]
