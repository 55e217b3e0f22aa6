"""The service behind HAProxy, with gRPC to the ingresses: answers and errors are the same, large bodies pass, and no
request is lost when a replica or an ingress dies. The tests start a separate service, because Ray reads these settings
at start.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from benchmarks.ports import free_port
from rerank_service.config import RerankConfig
from tests.service.running import (
    CLIENT_TIMEOUT_S,
    LLAMA,
    MISTRAL,
    Reference,
    assert_error,
    assert_ranked,
    long_text,
    ranking_body,
)
from tests.service.split_traffic import PASSAGES as SPLIT_PASSAGES
from tests.service.split_traffic import Split, play_canary

_START_LIMIT_S = 240
CANARY = "canary"
PASSAGES = [f"{number} {long_text(60)}" for number in range(40)]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes with Ray on Linux only"),
]


@dataclass(frozen=True)
class Front:
    """A service behind HAProxy."""

    url: str
    pid: int

    def pids(self, deployment: str) -> list[int]:
        """Process ids of a deployment's replicas, found by the titles that Ray gives them."""
        tree = psutil.Process(self.pid).children(recursive=True)
        title = re.compile(rf"ServeReplica:rerank:{re.escape(deployment)}(?![\w-])")
        return [process.pid for process in tree if title.search(_title(process))]

    @property
    def gcs_address(self) -> str:
        """Address of the control store of the Ray cluster that the service has started."""
        tree = psutil.Process(self.pid).children(recursive=True)
        found = (re.search(r"--gcs-address=(\S+)", _title(process)) for process in tree)
        return next(one[1] for one in found if one is not None)


def _title(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


@pytest.fixture(scope="module")
def front(config: RerankConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("haproxy")
    http, stats, metrics = (free_port() for _ in range(3))
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(_document(config, http)))
    variables = {
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }
    program = str(Path(sys.executable).with_name("rerank-service"))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program, "serve", str(path), "--haproxy"],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{http}"
            _wait_until_ready(process, url, folder / "log")
            yield Front(url, process.pid)
        finally:
            _stop(process)


async def test_answers_and_errors_are_the_same(front: Front, references: dict[str, Reference]) -> None:
    logits = references[LLAMA].logits("which?", PASSAGES)
    async with httpx.AsyncClient(base_url=front.url, timeout=CLIENT_TIMEOUT_S) as client:
        assert_ranked(await client.post("/v1/ranking", json=ranking_body(LLAMA, "which?", PASSAGES)), logits)
        assert_error(await client.post("/v1/ranking", json=ranking_body(LLAMA, "which?", [])), 400)
        large = ranking_body(LLAMA, "which?", ["x " * 3_000_000])  # above gRPC's own limit of 4 MiB
        assert (await client.post("/v1/ranking", json=large)).status_code == 200
        none = ranking_body(LLAMA, "which?", [long_text(9000)], truncate="NONE")
        assert_error(await client.post("/v1/ranking", json=none), 400)  # raised in the replica


async def test_no_header_turns_off_the_time_limit(front: Front) -> None:
    body = ranking_body(LLAMA, "which?", PASSAGES)
    async with httpx.AsyncClient(base_url=front.url, timeout=CLIENT_TIMEOUT_S) as client:
        for value, status in (("-1", 400), ("0.0001", 504)):
            headers = {"x-request-timeout-seconds": value}
            assert_error(await client.post("/v1/ranking", json=body, headers=headers), status)


def test_keyless_limits_count_by_the_clients_own_address(front: Front) -> None:
    body = ranking_body(LLAMA, "which?", ["this"])

    def remaining(address: str, **headers: str) -> int:
        transport = httpx.HTTPTransport(local_address=address)
        with httpx.Client(transport=transport, timeout=CLIENT_TIMEOUT_S) as client:
            response = client.post(f"{front.url}/v1/ranking", json=body, headers=headers)
        return int(response.headers["x-ratelimit-remaining-requests"])

    assert {remaining(f"127.0.0.{number}") for number in (11, 12, 13)} == {999_999}
    # Each of the two ingresses counts for itself, so one of them sees its second request of this address here.
    forged = {remaining("127.0.0.11", **{"x-forwarded-for": f"203.0.113.{number}"}) for number in range(2)}
    assert min(forged) < 999_999


def test_only_the_services_host_is_open(front: Front) -> None:
    tree = psutil.Process(front.pid).children(recursive=True)
    haproxy = [address for process in tree if process.name() == "haproxy" for address in _listening(process)]
    ingresses = [address for pid in front.pids("ingress") for address in _listening(psutil.Process(pid))]

    assert {address.ip for address in haproxy} == {"127.0.0.1"}
    assert len(haproxy) >= 3  # the service, the exporter, and the statistics
    assert {address.ip for address in ingresses if address.port in range(30_000, 31_001)} == {"127.0.0.1"}


def _listening(process: psutil.Process) -> list[Any]:
    return [one.laddr for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]


def test_a_reply_has_its_id_and_timings(front: Front) -> None:
    response = httpx.post(
        f"{front.url}/v1/ranking",
        json=ranking_body(LLAMA, "which?", PASSAGES),
        headers={"x-request-id": "mine-7"},
        timeout=CLIENT_TIMEOUT_S,
    )
    assert response.headers["x-request-id"] == "mine-7"
    assert "forward;dur=" in response.headers["server-timing"]


def test_no_request_fails_through_a_canary(front: Front, references: dict[str, Reference]) -> None:
    logits = {
        LLAMA: references[LLAMA].logits("which?", SPLIT_PASSAGES),
        CANARY: references[MISTRAL].logits("which?", SPLIT_PASSAGES),
    }

    def pids(name: str) -> set[int]:
        return set(front.pids(name.replace("/", "_")))

    play_canary(Split(front.url, LLAMA, CANARY, logits, pids, front.gcs_address))


@pytest.mark.parametrize("deployment", [LLAMA.replace("/", "_"), "ingress"])
async def test_no_request_is_lost_when_a_process_dies(
    front: Front, references: dict[str, Reference], deployment: str
) -> None:
    logits = references[LLAMA].logits("which?", PASSAGES)
    body = ranking_body(LLAMA, "which?", PASSAGES)
    # HAProxy cannot repeat a request whose reply has begun, so no replica answers before the ingress is dead.
    paused = front.pids(LLAMA.replace("/", "_")) if deployment == "ingress" else []
    victim = front.pids(deployment)[0]
    async with httpx.AsyncClient(base_url=front.url, timeout=CLIENT_TIMEOUT_S) as client:
        for pid in paused:
            os.kill(pid, signal.SIGSTOP)
        try:
            requests = [asyncio.ensure_future(client.post("/v1/ranking", json=body)) for _ in range(16)]
            wait_s = 2.0 if paused else None
            done, pending = await asyncio.wait(requests, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            assert pending
            assert not (paused and done)
            os.kill(victim, signal.SIGKILL)
        finally:
            for pid in paused:
                os.kill(pid, signal.SIGCONT)
        responses = await asyncio.gather(*requests)

    for response in responses:
        assert_ranked(response, logits)


def _document(config: RerankConfig, port: int) -> dict[str, Any]:
    """A configuration with two replicas of the tiny Llama, a canary with another checkpoint, and two ingresses."""
    model = config.models[0].model_dump(mode="json", exclude_unset=True)
    model["autoscaling"] = {"min_replicas": 2, "max_replicas": 2}
    canary = config.models[1].model_dump(mode="json", exclude_unset=True)
    canary |= {"id": CANARY, "aliases": [], "version": {"of": LLAMA}}
    settings = {
        "models": [model, canary],
        "service": {"ingress": {"min_replicas": 2, "max_replicas": 2}},
        "limits": {"request_timeout_s": 200},
        "rate_limits": {"requests_per_minute": 1_000_000},
    }
    application = {
        "name": "rerank",
        "route_prefix": "/",
        "import_path": "rerank_service.app:build_app",
        "args": settings,
    }
    http_options = {"host": "127.0.0.1", "port": port}
    return {"proxy_location": "HeadOnly", "http_options": http_options, "applications": [application]}


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/v1/health/ready", timeout=_START_LIMIT_S).status_code == 200:
                return
        time.sleep(0.5)


def _stop(process: subprocess.Popen[bytes]) -> None:
    tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(60)
    for survivor in tree:
        with suppress(psutil.NoSuchProcess):
            survivor.kill()
    process.wait()
