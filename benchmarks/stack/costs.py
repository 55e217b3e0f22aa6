"""Measures the CPU time of a request by process, size and number of shards, and the latency of an idle stack."""

import statistics
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.peers.processes import Server
from benchmarks.stack.launch import started
from rerank_service.config import IngressConfig
from rerank_service.messages import Fitting
from rerank_service.routing.ranker import cut_into_shards
from rerank_service.tools.bench.apis import NIM, PreparedRequest
from rerank_service.tools.bench.measure import measure_load, process_tree

__all__ = ["Costs", "cpu_by_role", "fit_costs", "measure_costs"]

_QUERY = "What does the service itself cost?"
_SIZES = ((1, 500), (20, 500), (100, 1_000))
"""Sizes of requests: number of passages, and bytes per passage."""
_ONE_SHARD_TOKENS = 1_000_000
_CLIENTS = 8
_REQUESTS, _ALONE = 600, 60
_ROLES = {
    "ServeReplica:rerank:ingress": "ingress",
    "ServeReplica:rerank:simulated": "replica",
    "ServeController": "controller",
    "ProxyActor": "proxy",
    "HAProxyManager": "proxy",
    "haproxy": "proxy",
}


@dataclass(frozen=True)
class Costs:
    """Costs of one kind of request."""

    passages: int
    kb: float
    shards: int
    cpu_ms: dict[str, float]
    """CPU time by process, minus the CPU time of the idle process."""
    alone_p50_ms: float
    """Median latency with one client."""


def measure_costs(haproxy: bool) -> dict[str, Any]:
    """Measures the costs of each kind of request and fits linear functions to them."""
    rows = []
    for shard_tokens in (4_096, _ONE_SHARD_TOKENS):
        ingress = IngressConfig(shard_tokens=shard_tokens).model_dump()
        with started({"tokens_per_s": None}, haproxy=haproxy, service={"ingress": ingress}) as server:
            measure_load(server.url + NIM.path, _requests(20, 500, 300), _CLIENTS)
            rows += [_measure(server, *size, shard_tokens) for size in _SIZES]
    front = "haproxy" if haproxy else "serve proxy"
    return {"front": front, "requests": [asdict(row) for row in rows]} | fit_costs(rows)


def _measure(server: Server, passages: int, passage_bytes: int, shard_tokens: int) -> Costs:
    requests = _requests(passages, passage_bytes, _REQUESTS)
    idle = _used(server, lambda: time.sleep(4.0))
    used = _used(server, lambda: measure_load(server.url + NIM.path, requests, _CLIENTS))
    took_s, idle_s = used.pop("wall"), idle.pop("wall")
    cpu_ms = {role: 1000 * (used[role] - idle[role] / idle_s * took_s) / len(requests) for role in sorted(used)}
    alone, _ = measure_load(server.url + NIM.path, requests[:_ALONE], 1)
    texts = ["x" * passage_bytes] * passages
    shards = cut_into_shards("", "", _QUERY, [f"{n}{text}" for n, text in enumerate(texts)], Fitting(), shard_tokens)
    kb = len(requests[0].body) / 1000
    return Costs(passages, kb, len(list(shards)), cpu_ms, 1000 * (alone.p50_s or 0.0))


def _used(server: Server, call: Any) -> Counter[str]:
    before, began = cpu_by_role(server.pid), time.perf_counter()
    call()
    used = Counter({role: seconds - before[role] for role, seconds in cpu_by_role(server.pid).items()})
    used["wall"] = time.perf_counter() - began  # type: ignore[assignment]
    return used


def cpu_by_role(pid: int) -> Counter[str]:
    """CPU-seconds so far of ingress, replicas, controller, proxies, and the rest of Ray."""
    seconds: Counter[str] = Counter(dict.fromkeys(["ingress", "replica", "controller", "proxy", "ray"], 0))
    for process in process_tree(pid):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            title = " ".join(process.cmdline())
            role = next((role for part, role in _ROLES.items() if part in title), "ray")
            times = process.cpu_times()
            seconds[role] += times.user + times.system  # type: ignore[assignment]
    return seconds


def _requests(passages: int, passage_bytes: int, count: int) -> list[PreparedRequest]:
    return [
        NIM.request(_QUERY, [f"{number} {index} ".ljust(passage_bytes, "x") for index in range(passages)])
        for number in range(count)
    ]


def fit_costs(rows: list[Costs]) -> dict[str, Any]:
    """CPU-ms of the ingress and of all other processes: per request, per KB and per shard."""
    inputs = np.array([[1.0, row.kb, row.shards] for row in rows])
    ingress = np.array([row.cpu_ms["ingress"] for row in rows])
    other = np.array([sum(row.cpu_ms.values()) - row.cpu_ms["ingress"] for row in rows])
    names = ("ms", "ms_a_kb", "ms_a_shard")
    fits = {
        name: dict(zip(names, map(float, _least_squares(inputs, values)), strict=True))
        for name, values in (("ingress", ingress), ("other", other))
    }
    smallest_ms = statistics.median(row.alone_p50_ms for row in rows if row.passages == 1)
    return fits | {"alone_ms": smallest_ms}


def _least_squares(inputs: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The factors of the columns of `inputs`; a column whose factor would be negative has none."""
    factors, columns = np.zeros(inputs.shape[1]), list(range(inputs.shape[1]))
    while columns:
        fitted = np.linalg.lstsq(inputs[:, columns], values, rcond=None)[0]
        if fitted.min() >= 0:
            factors[columns] = fitted
            break
        columns.pop(int(fitted.argmin()))
    return factors
