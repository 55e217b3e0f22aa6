"""The recipe for hosts without Kubernetes, unchanged, with a head and two workers on three addresses of this machine:
once with Serve's own proxies and once with HAProxy.

The test sends a request, and drains and stops one worker. Draining the other worker is refused, because no node has
room for its replicas. The test sends another request and stops everything, which must leave no process of the recipe.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.ports import free_port
from rerank_service.config import RerankConfig, load_config
from rerank_service.engine import load_engine
from tests.bare_metal import WORKERS, Hosts, command_line
from tests.manifests import built, kustomize
from tests.service.running import Reference, assert_ranked, ranking_body

ROOT = Path(__file__).parents[2]
_READY_LIMIT_S = 120
PASSAGES = [f"{number} the bread and the river" for number in range(8)]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of this machine on Linux only"),
]


@pytest.fixture(scope="module", params=["serve-proxy", "haproxy"])
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)  # a short path, because the paths of Ray's sockets in it may have at most 107 characters
        gcs, dashboard, http, *agents = (free_port() for _ in range(6))
        shared = ["--object-store-memory", "80000000", "--num-gpus", "0", "--dashboard-agent-listen-port"]
        hosts = Hosts.on_this_machine(
            folder,
            ["--num-cpus", "0", "--temp-dir", f"{folder}/r", *shared, str(agents[0])],
            [["--num-cpus", "3", *shared, str(port)] for port in agents[1:]],
            {8000: http, 8265: dashboard, 52365: agents[0]},
            {"GCS_PORT": str(gcs), "DASHBOARD_PORT": str(dashboard)} | _haproxy_ports(),
            has_haproxy=request.param == "haproxy",
        )
        try:
            yield hosts
        finally:
            hosts.run("down", is_checked=False)
            for process in hosts.processes():
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def test_a_cluster_of_three_hosts(hosts: Hosts, config: RerankConfig) -> None:
    serve_file = hosts.folder / "serve.yaml"
    _write_configuration(serve_file, config.models[0].checkpoint.source, hosts.ports[8000])
    logits = Reference(load_engine(load_config(serve_file).models[0])).logits("which?", PASSAGES)

    hosts.run("up")
    hosts.run("deploy", str(serve_file))
    with httpx.Client(base_url=hosts.url, timeout=60) as client:
        _wait_until_ready(client)
        assert_ranked(client.post("/v1/ranking", json=ranking_body(None, "which?", PASSAGES)), logits)
    _probe_as_kubernetes_does(hosts)

    with ThreadPoolExecutor() as pool:
        removal = pool.submit(hosts.run, "remove", WORKERS[0])
        with httpx.Client(base_url=hosts.url, timeout=60) as client:
            while not removal.done():
                assert_ranked(_rank(client), logits)
    assert "of ingress (application rerank)" in removal.result()
    assert "no replica is left on it" in removal.result() or "no part of the service is left on it" in removal.result()
    assert f"node {WORKERS[0]} is stopped" in removal.result()

    refused = hosts.run("remove", WORKERS[1], is_checked=False)
    assert "no other node has room for 2 of the replicas of" in refused
    assert "is stopped" not in refused
    with httpx.Client(base_url=hosts.url, timeout=60) as client:
        assert_ranked(client.post("/v1/ranking", json=ranking_body(None, "which?", PASSAGES)), logits)

    hosts.run("down")
    assert [command_line(process) for process in hosts.processes()] == []


def _haproxy_ports() -> dict[str, str]:
    names = [f"{kind}_PORT_{number}" for kind in ("METRICS", "STATS") for number in (1, 2, 3)]
    return {name: str(free_port()) for name in names}


def _write_configuration(path: Path, checkpoint: str, port: int) -> None:
    """Writes a configuration with the command, as an operator would. One worker has room for all replicas."""
    command = [
        str(Path(sys.executable).with_name("rerank-service")),
        "config",
        f"tiny={checkpoint}",
        *("--replicas", "2:2", "--ingresses", "2:2", "--ingress-cpus", "0.5"),
        *("--host", "0.0.0.0", "--port", str(port), "--output", str(path)),  # noqa: S104 - as HAProxy requires
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _probe_as_kubernetes_does(hosts: Hosts) -> None:
    """Runs the readiness probes of the KubeRay manifests on the ports of this cluster."""
    if kustomize() is None:
        return
    (service,) = [one for one in built(ROOT / "cluster/kuberay/base") if one["kind"] == "RayService"]
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        probe = group["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
        command = probe[-1]
        for usual, here in hosts.ports.items():
            command = command.replace(f":{usual}/", f":{here}/")
        subprocess.run([*probe[:-1], command], check=True, timeout=30)


def _wait_until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + _READY_LIMIT_S
    told = ""
    while True:
        with suppress(httpx.TransportError):
            response = client.get("/v1/health/ready")
            if response.status_code == 200:
                return
            told = response.text
        assert time.monotonic() < deadline, told
        time.sleep(0.5)


def _rank(client: httpx.Client) -> httpx.Response:
    """Ranks, and retries once: all nodes share a port here, so the connection may lead to the stopped node's proxy."""
    try:
        return client.post("/v1/ranking", json=ranking_body(None, "which?", PASSAGES))
    except httpx.TransportError:
        return client.post("/v1/ranking", json=ranking_body(None, "which?", PASSAGES))
