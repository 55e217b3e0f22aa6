"""Measures the cost of the service itself, with a null engine behind Serve's proxy and behind HAProxy."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.peers.processes import Server
from benchmarks.stack.launch import started
from rerank_service.tools.bench.apis import NIM, PreparedRequest
from rerank_service.tools.bench.measure import cpu_seconds, measure_load

__all__ = ["measure_overhead"]

_PASSAGES, _PASSAGE_BYTES = 20, 500
_CLIENTS = 32
_REQUESTS = 1_500
_IDLE_S = 5.0


@dataclass(frozen=True)
class Overhead:
    """Medians over the repeats, for requests with 20 passages and 10 KB."""

    cpu_ms: float
    """CPU time of all processes of the service, minus the CPU time of the idle service."""
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    idle_cpus: float
    """Number of busy CPUs of the idle service."""
    failures: int


def measure_overhead(repeats: int) -> dict[str, Any]:
    """Figures by proxy: `serve proxy` and `haproxy`."""
    return {name: asdict(_measure(haproxy, repeats)) for name, haproxy in (("serve proxy", False), ("haproxy", True))}


def _measure(haproxy: bool, repeats: int) -> Overhead:
    requests = [_request(number) for number in range(_REQUESTS)]
    with started({"tokens_per_s": None}, haproxy=haproxy) as server:
        measure_load(server.url + NIM.path, requests[:300], _CLIENTS)
        runs = [_run(server, requests) for _ in range(repeats)]
    return Overhead(
        *(statistics.median(run[index] for run in runs) for index in range(5)),
        failures=sum(run[5] for run in runs),
    )


def _run(server: Server, requests: Sequence[PreparedRequest]) -> tuple[float, float, float, float, float, int]:
    before, started_at = cpu_seconds(server.pid), time.perf_counter()
    time.sleep(_IDLE_S)
    idle = (cpu_seconds(server.pid) - before) / (time.perf_counter() - started_at)
    before, started_at = cpu_seconds(server.pid), time.perf_counter()
    figures, run = measure_load(server.url + NIM.path, requests, _CLIENTS)
    used = cpu_seconds(server.pid) - before - idle * (time.perf_counter() - started_at)
    p50_s, p99_s = figures.p50_s or 0.0, figures.p99_s or 0.0
    num_failed = sum(figures.failures.values())
    return 1000 * used / len(requests), len(requests) / run.wall_s, 1000 * p50_s, 1000 * p99_s, idle, num_failed


def _request(number: int) -> PreparedRequest:
    passages = [f"{number} {index} ".ljust(_PASSAGE_BYTES, "x") for index in range(_PASSAGES)]
    return NIM.request("What does the service itself cost?", passages)
