"""`rerank-service serve` as a process: a port in use, a folder with a model, and shutdown by Ctrl-C or SIGTERM."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from benchmarks.ports import free_port
from rerank_service.tools.random_checkpoints.make import make_checkpoint
from rerank_service.tools.random_checkpoints.shapes import Architecture
from tests.service.running import CLIENT_TIMEOUT_S, long_text, ranking_body

ROOT = Path(__file__).parents[2]
_LIMIT_S = 240
PROGRAM = str(Path(sys.executable).with_name("rerank-service"))


@dataclass(frozen=True)
class Running:
    """A service in its own process group, as a shell starts it."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    folder: Path

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Sends a signal; SIGINT goes to the whole group, as from a terminal. Returns the exit code and the output
        after the signal."""
        printed = self.log.stat().st_size
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        code = self.process.wait(_LIMIT_S)
        return code, self.log.read_text()[printed:]


def write_configuration(path: Path, port: int, host: str = "127.0.0.1") -> None:
    """Writes the shipped configuration with another port and one replica."""
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    document["http_options"] |= {"host": host, "port": port}
    (model,) = document["applications"][0]["args"]["models"]
    model["autoscaling"] = {"min_replicas": 1, "max_replicas": 1}
    path.write_text(yaml.safe_dump(document))


@contextmanager
def running(folder: Path, arguments: Sequence[str]) -> Iterator[Running]:
    """The shipped configuration with these arguments, once it is ready. With arguments, other options replace the
    address in the file."""
    port, path = free_port(), folder / "serve.yaml"
    write_configuration(path, free_port() if arguments else port)
    listening = ["--port", str(port), "--host", "0.0.0.0"] if arguments else []  # noqa: S104
    with started(folder, [str(path), *listening, *arguments], port) as service:
        _wait_until_ready(service)
        yield service


@contextmanager
def started(folder: Path, arguments: Sequence[str], port: int) -> Iterator[Running]:
    names, log = ("HAPROXY_STATS_PORT", "HAPROXY_METRICS_PORT", "FALLBACK_PROXY_HTTP_PORT"), folder / "log"
    variables = {f"RAY_SERVE_{name}": str(free_port()) for name in names}
    variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"] = str(folder / "haproxy.cfg")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [PROGRAM, "serve", *arguments],
            env=os.environ | variables,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Running(process, f"http://127.0.0.1:{port}", log, folder)
    finally:
        tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in (*tree, process):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("arguments", "number"),
    [([], signal.SIGINT), (["--no-haproxy"], signal.SIGTERM), (["--no-haproxy"], signal.SIGINT)],
    ids=["ctrl-c", "serves-proxy-sigterm", "serves-proxy-ctrl-c"],
)
def test_a_signal_ends_the_service_after_its_requests(
    tmp_path: Path, arguments: list[str], number: signal.Signals
) -> None:
    with running(tmp_path, arguments) as service:
        if number is signal.SIGTERM:
            _check_that_a_second_service_is_refused(service)
        with ThreadPoolExecutor() as pool:
            sent = threading.Semaphore(0)
            requests = [pool.submit(_rank, service.url, size, sent) for size in (60, 60, 60, 20)]
            assert all(sent.acquire(timeout=_LIMIT_S) for _ in requests)
            assert not all(request.done() for request in requests)
            late = pool.submit(_statuses_until_the_end, service)
            code, printed = service.end(number)
            answers = [request.result() for request in requests]

    assert code == 0, printed
    assert answers == [200] * len(requests)
    assert late.result() <= {200, 404 if arguments else 503}
    assert "graceful_shutdown" not in printed
    assert "Traceback" not in printed
    assert "ERROR" not in printed


@pytest.mark.cluster
def test_a_folder_is_served_with_keys_from_a_file(tmp_path: Path) -> None:
    port = free_port()
    make_checkpoint(tmp_path / "mine", Architecture.BERT, "tiny")
    (tmp_path / "keys").write_text("key-of-the-test\n")
    arguments = ["./mine", "--port", str(port), "--api-key-file", "keys", "--replicas", "1"]
    with started(tmp_path, arguments, port) as service:
        _wait_until_ready(service)
        body = ranking_body("mine", "which?", ["this", "that"])
        refused = httpx.post(f"{service.url}/v1/ranking", json=body, timeout=CLIENT_TIMEOUT_S)
        headers = {"Authorization": "Bearer key-of-the-test"}
        answer = httpx.post(f"{service.url}/v1/ranking", json=body, headers=headers, timeout=CLIENT_TIMEOUT_S)
        pages = [httpx.get(f"{service.url}{path}", timeout=CLIENT_TIMEOUT_S).status_code for path in ("/", "/docs")]
        _wait_for_line(service, "  keys ")
        code, _ = service.end(signal.SIGINT)

    assert (refused.status_code, answer.status_code, pages) == (401, 200, [200, 200])
    assert len(answer.json()["rankings"]) == 2
    assert code == 0
    printed = service.log.read_text()
    lines = [line for line in printed.splitlines() if "WARNING" not in line]  # a busy machine schedules late
    assert lines == [
        f"mine: {tmp_path}/mine",
        "  on the CPU, 1 replica of 1 CPU",
        f"ready on {service.url}",
        "  models  mine",
        f"  page    {service.url}/",
        f"  docs    {service.url}/docs",
        "  keys    requests need a key",
        "stopping after the requests in flight; press Ctrl-C again to stop at once",
    ]
    assert "key-of-the-test" not in printed


@pytest.mark.cluster
def test_a_model_that_cannot_load_ends_the_command_with_its_reason(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "mine", Architecture.BERT, "tiny")
    config = tmp_path / "mine" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 8}))
    with started(tmp_path, ["./mine", "--port", str(free_port())], 0) as service:
        code = service.process.wait(_LIMIT_S)

    printed = service.log.read_text()
    assert code == 1, printed
    assert "Traceback" not in printed
    last = printed.splitlines()[-1]
    assert last.startswith(f"error: mine cannot start: the tensors of {tmp_path}/mine do not fit its config.json")


def _rank(url: str, num_passages: int, sent: threading.Semaphore) -> int | str:
    """Returns the status of a ranking, or the body of an error. Releases `sent` once the whole request is sent."""
    body = ranking_body(None, "which?", [f"{index} {long_text(40)}" for index in range(num_passages)])

    def note(event: str, _: object) -> None:
        if event == "http11.send_request_body.complete":
            sent.release()

    with httpx.Client(timeout=CLIENT_TIMEOUT_S) as client:
        response = client.post(f"{url}/v1/ranking", json=body, extensions={"trace": note})
    return response.status_code if response.status_code == 200 else response.text


def _statuses_until_the_end(service: Running) -> set[int]:
    """Sends small rankings, each in a new connection, until the service has ended. Returns the statuses."""
    body, statuses = ranking_body(None, "which?", ["this", "that"]), set()
    with httpx.Client(timeout=CLIENT_TIMEOUT_S, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        while service.process.poll() is None:
            with suppress(httpx.TransportError):
                statuses.add(client.post(f"{service.url}/v1/ranking", json=body).status_code)
            time.sleep(0.1)
    return statuses


def _check_that_a_second_service_is_refused(service: Running) -> None:
    """Tries the same port on the same address and on all addresses."""
    port = int(service.url.rpartition(":")[2])
    for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104
        path = service.folder / "second.yaml"
        write_configuration(path, port, host)
        second = subprocess.run([PROGRAM, "serve", str(path)], capture_output=True, text=True, timeout=120, check=False)
        assert second.returncode == 2, second.stderr
        (line,) = second.stderr.splitlines()
        assert f"port {port} of {host} is in use by another rerank service" in line
        assert f"(process {service.process.pid}: " in line
        assert f"http_options.port in {path}" in line


def test_a_port_in_use_by_another_program_is_reported_in_one_line(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as holder:
        port = holder.getsockname()[1]
        write_configuration(tmp_path / "serve.yaml", port)
        command = [PROGRAM, "serve", str(tmp_path / "serve.yaml")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: port {port} of 127.0.0.1 is in use by another program (process {os.getpid()}")


def _wait_for_line(service: Running, start: str) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not any(line.startswith(start) for line in service.log.read_text().splitlines()):
        assert time.monotonic() < deadline, service.log.read_text()[-2000:]
        time.sleep(0.2)


def _wait_until_ready(service: Running) -> None:
    """Until the command says so: before that, a signal stops an unfinished start."""
    deadline = time.monotonic() + _LIMIT_S
    while "ready on" not in service.log.read_text():
        assert service.process.poll() is None, service.log.read_text()[-2000:]
        assert time.monotonic() < deadline, service.log.read_text()[-2000:]
        time.sleep(0.5)
