"""The gateway in front of several cells: Ray's HAProxy with our configuration, and tiny servers instead of clusters."""

import itertools
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from cluster.gateway.shift import Gateway
from cluster.validate.documents import Documents
from cluster.validate.finding import Setting
from cluster.validate.findings import findings
from cluster.validate.sets import CLUSTER, built, kustomize
from tests.gateway import SHIFT, RunningGateway, has_haproxy, running_gateway

needs_haproxy = pytest.mark.skipif(not has_haproxy(), reason="Ray has HAProxy on Linux only")
TENANTS = [f"Bearer key-{number}" for number in range(60)]


class Cell(ThreadingHTTPServer):
    """Answers every request, or breaks off; is ready, or not."""

    daemon_threads = True

    def __init__(self, name: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Answering)
        self.name = name
        self.is_ready = True
        self.breaks_off = False
        self.resets = False
        self.num_broken_off = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Cell

    def do_GET(self) -> None:
        self._answer(200 if self.server.is_ready else 503)

    def do_POST(self) -> None:
        if self.server.resets:  # as the kernel does for a killed process that has not read the request
            self.server.num_broken_off += 1
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        self.rfile.read(int(self.headers["content-length"]))
        if self.server.breaks_off:
            self.server.num_broken_off += 1
            self.close_connection = True
            return
        self._answer(200)

    def _answer(self, status: int) -> None:
        body = json.dumps({"cell": self.server.name}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def cell(name: str) -> Iterator[Cell]:
    server = Cell(name)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def cells() -> Iterator[tuple[Cell, Cell]]:
    with cell("a") as a, cell("b") as b:
        yield a, b


@pytest.fixture
def gateway(cells: tuple[Cell, Cell]) -> Iterator[RunningGateway]:
    a, b = cells
    with running_gateway(a.address, b.address) as running:
        wait_until(lambda: all(Gateway(running.socket).is_up(name) for name in "ab"))
        yield running


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ask(gateway: RunningGateway, key: str | None) -> httpx.Response:
    headers = {} if key is None else {"authorization": key}
    return gateway.client.post("/v1/ranking", json={"query": "x" * 1000}, headers=headers)


def homes(gateway: RunningGateway) -> dict[str, str]:
    """The cell of each tenant, as the answer itself and the gateway's header say."""
    found = {}
    for key in TENANTS:
        response = ask(gateway, key)
        assert response.status_code == 200
        assert response.json()["cell"] == response.headers["x-rerank-cell"]
        found[key] = response.json()["cell"]
    return found


def shift(gateway: RunningGateway, old: str, new: str, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(SHIFT), "--socket", gateway.socket, "--from", old, "--to", new, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@needs_haproxy
def test_a_tenant_has_one_cell_and_tenants_are_spread(gateway: RunningGateway) -> None:
    first = homes(gateway)
    assert homes(gateway) == first
    assert min(Counter(first.values()).values()) >= len(TENANTS) // 4

    without_key = Counter(ask(gateway, None).json()["cell"] for _ in range(40))
    assert set(without_key) == {"a", "b"}


@needs_haproxy
def test_a_lost_cell_moves_only_its_own_tenants(gateway: RunningGateway, cells: tuple[Cell, Cell]) -> None:
    before = homes(gateway)
    cells[0].breaks_off = True  # before any health check notices
    during = homes(gateway)
    assert cells[0].num_broken_off > 0
    assert set(during.values()) == {"b"}

    cells[0].breaks_off, cells[0].is_ready = False, False
    wait_until(lambda: not Gateway(gateway.socket).is_up("a"))
    assert set(homes(gateway).values()) == {"b"}

    cells[0].is_ready = True
    wait_until(lambda: Gateway(gateway.socket).is_up("a"))
    assert homes(gateway) == before


@needs_haproxy
def test_a_killed_cell_that_resets_its_connections_costs_no_request(
    gateway: RunningGateway, cells: tuple[Cell, Cell]
) -> None:
    homes(gateway)  # connections to both cells, which the gateway keeps
    cells[0].resets = True
    during = homes(gateway)
    assert cells[0].num_broken_off > 0
    assert set(during.values()) == {"b"}


_SLOW_CELL = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(0.05)
        self.do_GET()
    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.request_queue_size = 64
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def killable_cell() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    process = subprocess.Popen([sys.executable, "-c", _SLOW_CELL], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, f"127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@needs_haproxy
def test_a_killed_cell_costs_no_request_of_many_clients() -> None:
    """All connections of a killed process end at once, those of requests in progress and the idle ones, which a burst
    of many clients leaves behind. The limit on a cell's requests sends repeated requests back to the dead cell."""
    statuses: list[int] = []
    is_stopped = threading.Event()

    def rank(number: int, url: str, most: int = sys.maxsize) -> None:
        headers = {"authorization": f"Bearer key-{number}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60, verify=False) as client:  # noqa: S501 - no TLS
            for _ in itertools.takewhile(lambda _: not is_stopped.is_set(), range(most)):
                statuses.append(client.post("/v1/ranking", json={"query": "x"}).status_code)

    with killable_cell() as (a, of_a), killable_cell() as (_, of_b), running_gateway(of_a, of_b) as gateway:
        wait_until(lambda: all(Gateway(gateway.socket).is_up(name) for name in "ab"))
        with ThreadPoolExecutor(80) as pool:
            for burst in [pool.submit(rank, number, gateway.url, 3) for number in range(80)]:
                burst.result()
            before = len(statuses)
            clients = [pool.submit(rank, number, gateway.url) for number in range(24)]
            wait_until(lambda: len(statuses) > before + 200)
            a.kill()
            answered = len(statuses)
            wait_until(lambda: len(statuses) > answered + 200 or any(client.done() for client in clients))
            is_stopped.set()
        for client in clients:
            client.result()
    assert set(statuses) == {200}


@needs_haproxy
def test_without_any_cell_the_answer_has_the_services_form(gateway: RunningGateway, cells: tuple[Cell, Cell]) -> None:
    for each in cells:
        each.is_ready = False
    wait_until(lambda: gateway.client.get("/gateway/health").status_code == 503)

    response = ask(gateway, TENANTS[0])

    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    error = response.json()
    assert error["object"] == "error"
    assert error["detail"] == [{"loc": [], "msg": error["message"], "type": "replica_unavailable"}]
    assert error["type"] == "overloaded_error"


@needs_haproxy
def test_traffic_moves_in_steps_and_back(gateway: RunningGateway) -> None:
    before = homes(gateway)
    forth = shift(gateway, "a", "b", "--steps", "2", "--interval-s", "0")
    assert forth.communicate(timeout=60)[0].splitlines() == [
        "b: 50%, a: 50%",
        "b: 100%, a: 0%",
        "a is idle: it can be stopped",
    ]
    assert forth.returncode == 0
    assert set(homes(gateway).values()) == {"b"}

    back = shift(gateway, "b", "a", "--steps", "1", "--interval-s", "0")
    back.communicate(timeout=60)
    assert back.returncode == 0
    assert set(homes(gateway).values()) == {"a"}

    Gateway(gateway.socket).set_weight("b", 100)
    assert homes(gateway) == before


@needs_haproxy
def test_traffic_returns_if_the_new_cell_fails(gateway: RunningGateway, cells: tuple[Cell, Cell]) -> None:
    moving = shift(gateway, "a", "b", "--steps", "2", "--interval-s", "60")
    assert moving.stdout is not None
    assert moving.stdout.readline() == "b: 50%, a: 50%\n"
    cells[1].is_ready = False
    rest = moving.communicate(timeout=60)[0]

    assert (moving.returncode, rest) == (1, "b fails its health checks: all traffic is back on a\n")
    cells[1].is_ready = True
    wait_until(lambda: Gateway(gateway.socket).is_up("b"))
    assert set(homes(gateway).values()) == {"a"}


@needs_haproxy
def test_nothing_moves_to_a_cell_that_is_down(gateway: RunningGateway, cells: tuple[Cell, Cell]) -> None:
    before = homes(gateway)
    cells[1].is_ready = False
    wait_until(lambda: not Gateway(gateway.socket).is_up("b"))
    refused = shift(gateway, "a", "b")
    assert refused.communicate(timeout=60)[0] == "b fails its health checks: nothing is moved\n"
    assert refused.returncode == 1

    cells[1].is_ready = True
    wait_until(lambda: Gateway(gateway.socket).is_up("b"))
    assert homes(gateway) == before


@needs_haproxy
def test_an_unknown_cell_is_refused(gateway: RunningGateway) -> None:
    with pytest.raises(SystemExit, match="no cell c"):
        Gateway(gateway.socket).state("c")
    with pytest.raises(SystemExit, match="refuses the weight of c"):
        Gateway(gateway.socket).set_weight("c", 50)


@pytest.mark.skipif(kustomize() is None, reason="needs kubectl or kustomize")
def test_the_manifests_of_the_gateway_are_sound() -> None:
    documents = Documents(built(CLUSTER / "gateway"))
    assert findings(documents, Setting(external=frozenset())) == {}
    (pod,) = documents.pods
    cells = {each["name"]: each["value"] for each in pod.main["env"] if each["name"].startswith("CELL_")}
    assert cells == {"CELL_A": "rerank-a-serve-svc:8000", "CELL_B": "rerank-b-serve-svc:8000"}
    data = documents.of_kind("ConfigMap")[0]["data"]
    assert data == {name: (CLUSTER / "gateway" / name).read_text() for name in ("haproxy.cfg", "shift.py")}
