"""Ports in use are detected, and the processes that hold them are named."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from fastapi import FastAPI

from benchmarks.ports import free_port
from rerank_service.tools.cli import foreground
from rerank_service.tools.cli.ports import Endpoint, is_free, is_loopback, problem_of, reserve
from tests.http_servers import running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the rules for sharing a port differ on other systems")


def listener(host: str, *options: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = socket.socket(family, socket.SOCK_STREAM)
    for option in options:
        holder.setsockopt(socket.SOL_SOCKET, option, 1)
    holder.bind((host, 0))
    holder.listen()
    return holder


def hang_up_on_each(holder: socket.socket) -> None:
    with suppress(OSError):  # raised when the socket is closed
        while True:
            holder.accept()[0].close()


def at(host: str, holder: socket.socket) -> Endpoint:
    return Endpoint(host, holder.getsockname()[1], "http_options.port in serve.yaml")


@pytest.mark.parametrize("options", [(), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)])
@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104
        ("127.0.0.1", "0.0.0.0"),  # noqa: S104
        ("127.0.0.1", "localhost"),
        ("::", "127.0.0.1"),
        ("::", "0.0.0.0"),  # noqa: S104
        ("::1", "::"),
    ],
)
def test_a_port_in_use_is_found_even_if_it_can_be_shared(held: str, wanted: str, options: tuple[int, ...]) -> None:
    try:
        holder = listener(held, *options)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with closing(holder):
        threading.Thread(target=hang_up_on_each, args=[holder], daemon=True).start()
        endpoint = at(wanted, holder)
        problem = problem_of(endpoint)
        assert problem is not None
        assert f"port {endpoint.port} of {wanted} is in use by another program (process {os.getpid()}: " in problem
        assert "http_options.port in serve.yaml" in problem
        assert "\n" not in problem


@pytest.mark.parametrize(("held", "wanted"), [("127.0.0.1", "127.0.0.2"), ("127.0.0.1", "::1")])
def test_another_address_of_the_machine_is_free(held: str, wanted: str) -> None:
    with closing(listener(held)) as holder:
        problem = problem_of(at(wanted, holder))
        assert problem is None or "cannot listen" in problem  # no IPv6


def test_old_connections_do_not_hold_a_port() -> None:
    holder = listener("127.0.0.1", socket.SO_REUSEADDR)
    endpoint = at("127.0.0.1", holder)
    client = socket.create_connection(holder.getsockname())
    accepted, _ = holder.accept()
    holder.close()
    accepted.close()  # the side that closes first enters TIME_WAIT
    client.close()

    assert problem_of(endpoint) is None


def test_another_service_is_recognised() -> None:
    api = FastAPI()

    @api.get("/v1/health/live")
    def live() -> dict[str, str]:
        return {"object": "health.response"}

    with running(api) as url:
        endpoint = Endpoint("0.0.0.0", int(url.rpartition(":")[2]), "X")  # noqa: S104
        assert "is in use by another rerank service (process" in str(problem_of(endpoint))


def test_the_command_is_named_that_has_started_the_holder(tmp_path: Path) -> None:
    """Not its HAProxy, which Serve would replace."""
    program = tmp_path / "rerank-service"
    child = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    program.write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    with subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        problem = problem_of(Endpoint("127.0.0.1", int(command.stdout.readline()), "X"))
        assert f"(process {command.pid}: " in str(problem)
        command.communicate("\n")


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    with closing(listener("127.0.0.1")) as holder:
        yield holder


def test_the_check_does_not_wait_long_for_a_silent_program(silent: socket.socket) -> None:
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(problem_of(at("127.0.0.1", silent))), daemon=True)
    thread.start()
    thread.join(60)

    assert answers
    assert "another program" in str(answers[0])


def test_a_service_that_is_starting_holds_its_port() -> None:
    with closing(listener("127.0.0.1")) as holder:
        endpoint = at("127.0.0.1", holder)
    reserve(endpoint)

    assert "a service that is just starting" in str(problem_of(endpoint))
    with socket.socket() as serves:  # listens like Serve's proxies
        serves.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        serves.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        serves.bind((endpoint.host, endpoint.port))
        serves.listen()
        for _ in range(20):  # all connections reach the listening socket
            socket.create_connection((endpoint.host, endpoint.port), 5).close()
            serves.accept()[0].close()


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("192.0.2.77", 8000, "cannot listen on port 8000 of 192.0.2.77"),
        ("no such host", 80, ""),
        ("a" * 64 + ".example", 80, "not a host name"),
        ("a..b", 80, "not a host name"),
    ],
)
def test_an_unusable_address_is_reported_with_its_setting(host: str, port: int, words: str) -> None:
    problem = problem_of(Endpoint(host, port, "X"))

    assert words in str(problem)
    assert "X" in str(problem)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("192.0.2.1", False),
        ("gpu-1", False),
    ],
)
def test_loopback_addresses(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


def test_serve_reads_its_ports_from_the_file_and_haproxys_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"http_options": {"host": "127.0.0.1", "port": 8123}, "applications": []}
    config = foreground.ServeDeploySchema.model_validate(settings)
    assert [(one.host, one.port) for one in foreground.endpoints_of(config, "--port")] == [("127.0.0.1", 8123)]

    monkeypatch.setattr(foreground.constants, "RAY_SERVE_ENABLE_HA_PROXY", True)
    monkeypatch.setattr(foreground.constants, "RAY_SERVE_HAPROXY_STATS_PORT", 8405)
    ports = {one.port: one.setting for one in foreground.endpoints_of(config, "--port")}
    assert ports[8123] == "--port"
    assert ports[8405] == "the environment variable RAY_SERVE_HAPROXY_STATS_PORT"
    assert len(ports) == 4


def test_haproxys_ports_are_bound_to_the_services_host(monkeypatch: pytest.MonkeyPatch) -> None:
    config = foreground.ServeDeploySchema.model_validate({"http_options": {"host": "127.0.0.1"}, "applications": []})
    monkeypatch.setattr(foreground.constants, "RAY_SERVE_ENABLE_HA_PROXY", True)
    assert {one.host for one in foreground.endpoints_of(config, "--port")} == {"127.0.0.1"}


def test_a_port_is_free_until_a_server_listens_on_it() -> None:
    port = free_port()
    assert is_free("127.0.0.1", port)
    with closing(socket.create_server(("127.0.0.1", port))):
        assert not is_free("127.0.0.1", port)
