"""When `rerank-service serve` puts HAProxy in front, and HAProxy's own ports and files."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

from rerank_service.tools.cli.haproxy import haproxy_runs, own_places, suits_haproxy
from rerank_service.tools.cli.serve import _environment_of

TLS = {"http_options": {"ssl_keyfile": "key.pem", "ssl_certfile": "certificate.pem"}}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster runs on this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", lambda _: None)


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes with Ray on Linux only")
@pytest.mark.parametrize(
    ("document", "environment", "expected"),
    [
        ({}, {}, True),
        ({"http_options": {"host": "0.0.0.0"}}, {}, True),  # noqa: S104
        (TLS, {}, False),
        ({"proxy_location": "Disabled"}, {}, False),
        ({}, {"RAY_SERVE_ENABLE_HA_PROXY": "0"}, False),
        (TLS, {"RAY_SERVE_ENABLE_HA_PROXY": "1"}, True),
    ],
)
def test_haproxy_is_the_default_where_it_can_replace_serves_proxy(
    document: dict[str, Any], environment: dict[str, str], expected: bool
) -> None:
    assert suits_haproxy(document, environment) is expected


def test_an_existing_cluster_keeps_its_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address", lambda _: "127.0.0.1:6379")
    assert not suits_haproxy({}, {})


def test_a_program_that_does_not_run_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "haproxy"
    broken.write_bytes(b"\x7fELF of another processor")
    broken.chmod(0o755)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(broken))
    assert not haproxy_runs()
    assert not suits_haproxy({}, {})


def test_each_service_has_its_own_ports_and_files() -> None:
    first: dict[str, str] = {"RAY_SERVE_HAPROXY_STATS_PORT": "8405"}
    second: dict[str, str] = {}
    with own_places(first, "127.0.0.1", 8000):
        port = first["RAY_SERVE_HAPROXY_METRICS_PORT"]
        with closing(create_server(("127.0.0.1", int(port)))), own_places(second, "127.0.0.1", 8000):
            assert first["RAY_SERVE_HAPROXY_STATS_PORT"] == "8405"
            assert second["RAY_SERVE_HAPROXY_METRICS_PORT"] != port
            folders = [Path(places["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent for places in (first, second)]
            assert folders[0] != folders[1]
            assert all(folder.stat().st_mode & 0o077 == 0 for folder in folders)
    assert not any(folder.exists() for folder in folders)


def test_services_that_start_at_the_same_moment_have_different_ports() -> None:
    first: dict[str, str] = {}
    second: dict[str, str] = {}
    with own_places(first, "127.0.0.1", 8000), own_places(second, "127.0.0.1", 8000):  # neither listens yet
        ports = [places[name] for places in (first, second) for name in places if name.endswith("_PORT")]
    assert len(set(ports)) == len(ports) == 6
    kernels = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(map(int, ports)) < kernels, "the kernel may give the port to a connection before HAProxy listens on it"


@pytest.mark.parametrize("port", [8404, 8500, 9101])
def test_haproxys_own_ports_differ_from_the_services(port: int) -> None:
    places: dict[str, str] = {}
    with own_places(places, "127.0.0.1", port):
        assert str(port) not in places.values()


def test_the_path_of_the_socket_fits_into_haproxys_limit() -> None:
    places: dict[str, str] = {}
    with own_places(places, "127.0.0.1", 8000):
        socket = Path(places["RAY_SERVE_HAPROXY_SOCKET_PATH"])
    assert len(str(socket.parent / ("0" * 56) / socket.name)) <= 97


def test_an_haproxy_that_outlives_its_service_is_killed() -> None:
    """As after a signal to all processes of a service at once. Those of other services live on."""
    first: dict[str, str] = {}
    second: dict[str, str] = {}
    with own_places(first, "127.0.0.1", 8000):
        with own_places(second, "127.0.0.1", 8000):
            processes = [_haproxy_of(places) for places in (first, second)]
        assert processes[1].wait(5) == -signal.SIGKILL
        assert processes[0].poll() is None
    assert processes[0].wait(5) == -signal.SIGKILL


def test_an_haproxy_is_killed_even_if_the_command_is_killed() -> None:
    code = """
import signal
from rerank_service.tools.cli.haproxy import own_places

places = {}
with own_places(places, "127.0.0.1", 8000):
    print(places["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"], flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        places = {"RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": command.stdout.readline().strip()}
        haproxy = _haproxy_of(places)
        command.kill()
    assert haproxy.wait(10) == -signal.SIGKILL


def _haproxy_of(places: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """A process with the command line of an HAProxy that Serve starts. It runs: while a program is being loaded, its
    command line is empty."""
    config = Path(places["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
    program = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    process = subprocess.Popen(
        [*program, "-db", "-f", str(config.parent / "node" / config.name)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
    return process


@pytest.mark.parametrize(
    ("choice", "environment", "expected"),
    [
        (True, {}, "1"),
        (False, {}, None),
        (False, {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}, None),
        (None, {"RAY_SERVE_ENABLE_HA_PROXY": "0"}, "0"),
    ],
)
def test_the_options_decide_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, choice: bool | None, environment: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setattr(os, "environ", environment)
    with _environment_of({}, choice, "127.0.0.1", 8000):
        assert environment.get("RAY_SERVE_ENABLE_HA_PROXY") == expected
        assert ("RAY_SERVE_THROUGHPUT_OPTIMIZED" in environment) is (expected == "1")
        assert ("RAY_SERVE_HAPROXY_SOCKET_PATH" in environment) is (expected == "1")
        assert environment["RAY_health_check_period_ms"] == "1000"
