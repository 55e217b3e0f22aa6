"""Two services, each a Ray cluster of its own, behind the gateway: an upgrade from one to the other, the way back, and
the loss of one. No request is lost, and every answer is right.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from benchmarks.ports import free_port
from cluster.gateway.shift import Gateway
from rerank_service.config import RerankConfig
from tests.gateway import SHIFT, RunningGateway, has_haproxy, running_gateway
from tests.service.running import CLIENT_TIMEOUT_S, LLAMA, Reference, assert_ranked, long_text, ranking_body

_START_LIMIT_S = 300
_NUM_CLIENTS = 6
PASSAGES = [f"{number} {long_text(30)}" for number in range(8)]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not has_haproxy(), reason="Ray has HAProxy on Linux only"),
    pytest.mark.timeout(2 * _START_LIMIT_S + CLIENT_TIMEOUT_S),
]


@dataclass
class Traffic:
    """Clients with a key each, which rank until they are stopped."""

    url: str
    logits: list[float]
    cells: Counter[str] = field(default_factory=Counter)
    """Answered requests by cell."""
    faults: list[BaseException] = field(default_factory=list)
    is_stopped: bool = False

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._rank, args=(number,)) for number in range(_NUM_CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.is_stopped = True
            for thread in threads:
                thread.join()

    def wait_for(self, cell: str, more: int = 20) -> None:
        """Waits until a cell has answered this many further requests."""
        wanted = self.cells[cell] + more
        deadline = time.monotonic() + CLIENT_TIMEOUT_S
        while self.cells[cell] < wanted:
            assert not self.faults, self.faults[0]
            assert time.monotonic() < deadline, self.cells
            time.sleep(0.05)

    def _rank(self, number: int) -> None:
        headers = {"authorization": f"Bearer key-{number}"}
        body = ranking_body(LLAMA, "which?", PASSAGES)
        with httpx.Client(base_url=self.url, timeout=CLIENT_TIMEOUT_S, headers=headers) as client:
            while not self.is_stopped and not self.faults:
                try:
                    response = client.post("/v1/ranking", json=body)
                    assert_ranked(response, self.logits)
                    self.cells[response.headers["x-rerank-cell"]] += 1
                except BaseException as fault:  # the test itself reports it
                    self.faults.append(fault)


@pytest.fixture(scope="module")
def services(config: RerankConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, int]]]:
    """Address and process id of each cell."""
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(_service(config, tmp_path_factory.mktemp(f"cell-{name}"))) for name in ("a", "b")
        }
        for process, port, log in started.values():
            _wait_until_ready(process, port, log)
        yield {name: (f"127.0.0.1:{port}", process.pid) for name, (process, port, _) in started.items()}


@contextmanager
def _service(config: RerankConfig, folder: Path) -> "Iterator[tuple[subprocess.Popen[bytes], int, Path]]":
    port = free_port()
    (folder / "serve.yaml").write_text(yaml.safe_dump(_document(config, port)))
    command = [str(Path(sys.executable).with_name("rerank-service")), "serve", str(folder / "serve.yaml")]
    ports = {f"RAY_SERVE_HAPROXY_{kind}_PORT": str(free_port()) for kind in ("STATS", "METRICS")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | ports,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process, port, folder / "log"
        finally:
            tree = _tree(process.pid)
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            _kill(tree)
            process.wait()


def _document(config: RerankConfig, port: int) -> dict[str, Any]:
    model = config.models[0].model_dump(mode="json", exclude_unset=True)
    application = {
        "name": "rerank",
        "route_prefix": "/",
        "import_path": "rerank_service.app:build_app",
        "args": {"models": [model], "limits": {"request_timeout_s": 200}},
    }
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        with suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/v1/health/ready", timeout=_START_LIMIT_S).status_code == 200:
                return
        time.sleep(0.5)


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture
def gateway(services: dict[str, tuple[str, int]]) -> Iterator[RunningGateway]:
    with running_gateway(services["a"][0], services["b"][0]) as running:
        deadline = time.monotonic() + _START_LIMIT_S
        while not all(Gateway(running.socket).is_up(cell) for cell in services):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield running


def test_an_upgrade_and_the_loss_of_a_cell_lose_no_request(
    services: dict[str, tuple[str, int]], gateway: RunningGateway, references: dict[str, Reference]
) -> None:
    weights = Gateway(gateway.socket)
    weights.set_weight("b", 0)  # a new cluster next to the old one
    traffic = Traffic(gateway.url, references[LLAMA].logits("which?", PASSAGES))
    with traffic.running():
        traffic.wait_for("a")
        assert traffic.cells["b"] == 0

        _shift(gateway, "a", "b")
        at_old = traffic.cells["a"]
        traffic.wait_for("b")
        assert traffic.cells["a"] == at_old

        _shift(gateway, "b", "a")
        traffic.wait_for("a")

        weights.set_weight("b", 100)  # two cells that share the tenants
        traffic.wait_for("b")
        traffic.wait_for("a")
        _kill(_tree(services["a"][1]))
        traffic.wait_for("b", more=3 * _NUM_CLIENTS)

    assert traffic.faults == []


def _shift(gateway: RunningGateway, old: str, new: str) -> None:
    options = ["--steps", "4", "--interval-s", "1"]
    command = [sys.executable, str(SHIFT), "--socket", gateway.socket, "--from", old, "--to", new, *options]
    told = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.splitlines()[-1] == f"{old} is idle: it can be stopped"
