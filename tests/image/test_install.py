"""Runs the image's install step and its start command in a plain folder, without a container engine. Takes minutes.

`pytest tests/image -m image`. The tests need a package index, and install this index's build of torch. As root, the
service runs on a read-only file system with an empty /tmp, as under `docker run --read-only --tmpfs /tmp`.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.ports import free_port

ROOT = Path(__file__).parents[2]
PASSAGES = ["A croissant is a pastry.", "Paris is the capital of France.", "Berlin is in Germany."]
QUERY = "What is the capital of France?"
START_LIMIT_S = 600
# The folder of the installation, which is below /tmp, stays visible below the new /tmp. Docker's --tmpfs has noexec.
READ_ONLY = """
set -eu
image=$1
shift
mount --make-rprivate /
mount -t tmpfs none /mnt
mkdir /mnt/image /mnt/cache
mount --bind "$image" /mnt/image
mount -t tmpfs -o noexec,nosuid,nodev none /tmp
mkdir -p "$image"
mount --bind /mnt/image "$image"
mount -o remount,bind,ro "$image"
mount -o remount,bind,ro /
cd "$image"
exec "$@"
"""

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The installation, made from the files that `.dockerignore` admits."""
    folder = tmp_path_factory.mktemp("image")
    context = _build_context(folder / "context")
    _run(context, "cluster/install.sh", str(folder / "opt"), "cpu", "redis")
    yield folder
    shutil.rmtree(folder)


def test_the_sources_of_the_image_can_be_installed_and_rank(image: Path, tmp_path: Path) -> None:
    (tmp_path / "passages.txt").write_text("\n".join(PASSAGES))
    program = str(image / "opt/bin/rerank-service")
    answer = json.loads(_run(tmp_path, program, "rank", QUERY, "passages.txt", "--in-process", "--json"))

    assert answer["rankings"][0]["index"] == 1
    for name in ("ray", "serve", "rerank-service", "rerank-haproxy"):  # what the Dockerfile links
        assert (image / "opt/bin" / name).exists()
    assert "export RAY_SERVE_ENABLE_HA_PROXY=1" in _run(tmp_path, program, "environment", "--haproxy")


def test_the_start_command_serves_the_embedded_model_and_stops(image: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    start = [str(image / "context/cluster/entrypoint.sh"), "--host", "127.0.0.1", "--port", str(port)]
    can_mount = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
    if can_mount:
        start = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(image), *start]
    environment = _environment() | {
        "PATH": f"{image}/opt/bin:{os.environ['PATH']}",
        "HOME": "/home/rerank",  # does not exist, and cannot be made
        "HF_HOME": "/mnt/cache" if can_mount else str(tmp_path / "cache"),
        "RAY_TMPDIR": "/tmp/ray" if can_mount else f"/tmp/r-{port}",  # noqa: S108 - Ray's sockets need a short path
    }
    with log.open("w") as output:
        service = subprocess.Popen(start, cwd=image, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(lambda: service.poll() is not None or _is_ready(url))
        assert service.poll() is None, log.read_text()
        body = {"model": "all-MiniLM-L6-v2", "query": {"text": QUERY}, "passages": [{"text": one} for one in PASSAGES]}
        assert httpx.post(f"{url}/v1/ranking", json=body).json()["rankings"][0]["index"] == 1
        service.send_signal(signal.SIGINT)
        assert service.wait(timeout=120) == 0, log.read_text()
    finally:
        service.kill()
        service.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def _wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + START_LIMIT_S
    while not condition():
        assert time.monotonic() < until, "the service is not ready"
        time.sleep(0.5)


def _environment() -> dict[str, str]:
    hidden = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"}
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"TORCH_CPU_INDEX": ""}


def _run(folder: Path, *command: str) -> str:
    result = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _build_context(folder: Path) -> Path:
    """Copies the files that `.dockerignore` admits."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source, target = ROOT / line[1:], folder / line[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
    return folder
