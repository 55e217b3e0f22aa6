"""Measures a server under load: latency, throughput, and CPU time of its process tree."""

import asyncio
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rerank_service.tools.bench.apis import PreparedRequest
from rerank_service.tools.bench.load import LoadRun, run_load

if TYPE_CHECKING:
    import psutil

__all__ = ["LoadFigures", "cpu_seconds", "measure_load", "median_figures", "process_tree"]


@dataclass(frozen=True)
class LoadFigures:
    """Figures of the answered requests. Latencies are null if no request was answered."""

    num_clients: int
    num_requests: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    passages_per_s: float
    cpu_s_per_1k_passages: float | None
    """CPU-seconds of the server's process tree; null if no request was answered or the server's process is unknown."""

    p50_s_by_passages: dict[int, float]
    """Median latency by number of passages per request."""

    failures: dict[str, int]
    """Number of failed requests by status."""


def measure_load(
    url: str,
    requests: Sequence[PreparedRequest],
    num_clients: int,
    pid: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[LoadFigures, LoadRun]:
    """Sends the requests once. `pid` is the server's root process; null: CPU time is not measured."""
    before = cpu_seconds(pid) if pid is not None else 0.0
    run = asyncio.run(run_load(url, requests, num_clients, headers))
    used = cpu_seconds(pid) - before if pid is not None else 0.0
    figures = LoadFigures(
        num_clients=num_clients,
        num_requests=len(requests),
        p50_s=run.latency_s(50),
        p95_s=run.latency_s(95),
        p99_s=run.latency_s(99),
        passages_per_s=run.passages_per_s,
        cpu_s_per_1k_passages=1000 * used / run.num_passages if pid is not None and run.num_passages else None,
        p50_s_by_passages=run.median_s_by_passages(),
        failures=run.failures,
    )
    return figures, run


def median_figures(repeats: Sequence[LoadFigures]) -> LoadFigures:
    """Median of each figure over repeats of a load; failures are summed."""
    failures: Counter[str] = Counter()
    for figures in repeats:
        failures.update(figures.failures)
    sizes = sorted({size for figures in repeats for size in figures.p50_s_by_passages})
    medians: dict[str, Any] = {
        name: _median([getattr(figures, name) for figures in repeats])
        for name in ("p50_s", "p95_s", "p99_s", "passages_per_s", "cpu_s_per_1k_passages")
    }
    by_size = {
        size: statistics.median(
            figures.p50_s_by_passages[size] for figures in repeats if size in figures.p50_s_by_passages
        )
        for size in sizes
    }
    return replace(repeats[0], **medians, p50_s_by_passages=by_size, failures=dict(failures))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def cpu_seconds(pid: int) -> float:
    """User and system CPU-seconds of a process and all its descendants so far; 0 if the process has ended.

    A child that ended counts towards its parent once the parent has waited for it, so the difference between
    two calls includes processes that started and ended in between.
    """
    return sum(map(_cpu_seconds_of, process_tree(pid)))


def process_tree(pid: int) -> "list[psutil.Process]":
    """A process and all its descendants; empty if the process has ended."""
    import psutil  # installed by the extra `tools`

    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _cpu_seconds_of(process: "psutil.Process") -> float:
    import psutil

    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0
