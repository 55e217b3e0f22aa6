"""Redis starts with the commands of the manifests and of the compose file, and refuses clients without the password."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.ports import free_port
from cluster.validate.repository import compose_faults
from tests.programs import needs_program

CLUSTER = Path(__file__).parents[3] / "cluster"
PASSWORD = "0f 1e2d"


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CLUSTER / "docker-compose.yaml").read_text())
    return document


def stateful() -> dict[str, Any]:
    documents = yaml.safe_load_all((CLUSTER / "kuberay/base/manifests.yaml").read_text())
    (redis,) = [document for document in documents if document["kind"] == "StatefulSet"]
    (container,) = redis["spec"]["template"]["spec"]["containers"]
    return dict(container)


@contextmanager
def started(command: list[str], variable: str, folder: Path) -> Iterator[int]:
    """Runs a command of the manifests on a free port, with its data in `folder`."""
    port = free_port()
    here = rf"--appendonly \1 --port {port} --bind 127.0.0.1 --dir {folder}"
    words = [re.sub("--appendonly (yes|no)", here, word.replace("--dir /data", "")) for word in command]
    with subprocess.Popen(
        words, env={"PATH": "/usr/bin:/bin", variable: PASSWORD}, stdout=subprocess.DEVNULL
    ) as process:
        try:
            yield port
            assert process.poll() is None
        finally:
            process.terminate()


def ping(port: int, password: str | None) -> str:
    command = ["redis-cli", "-h", "127.0.0.1", "-p", str(port), "ping"]
    environment = {"PATH": "/usr/bin:/bin"} | ({"REDISCLI_AUTH": password} if password else {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


@needs_program("redis-server", "redis-server")
@pytest.mark.parametrize("place", ["compose", "kuberay"])
def test_redis_asks_for_the_password(place: str, tmp_path: Path) -> None:
    if place == "compose":
        command, variable = compose()["services"]["redis"]["command"], "REDISCLI_AUTH"
        command = [word.replace("$$", "$") for word in command]
    else:
        command, variable = stateful()["command"], "REDIS_PASSWORD"
    with started(command, variable, tmp_path) as port:
        deadline = time.monotonic() + 20
        while "PONG" not in ping(port, PASSWORD):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "NOAUTH" in ping(port, None)


def test_the_compose_file_has_no_known_fault() -> None:
    assert list(compose_faults(compose())) == []


def test_the_service_sends_the_password_that_redis_asks_for() -> None:
    services = compose()["services"]
    for name in ("cpu", "gpu"):
        given = services[name]["environment"]["RERANK_SERVICE_REDIS_PASSWORD"]
        assert given.startswith("${REDIS_PASSWORD:?")  # compose refuses to start without one
    assert services["redis"]["environment"]["REDISCLI_AUTH"] == "${REDIS_PASSWORD:-}"
