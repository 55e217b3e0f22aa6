"""Figures of one load run against a server, and their medians over repeats."""

import asyncio
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rerank_service.tools.bench.apis import PreparedRequest
from rerank_service.tools.bench.load import LoadRun, run_load

__all__ = ["LoadFigures", "measure_load", "median_figures"]


@dataclass(frozen=True)
class LoadFigures:
    """Of the requests that were answered; null where there was none."""

    num_clients: int
    num_requests: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    passages_per_s: float
    cpu_s_per_1k_passages: float | None
    """Of the server's whole process tree; null also where its process is not known."""

    p50_s_by_passages: dict[int, float]
    """By passages of a request."""

    failures: dict[str, int]
    """Count by status."""


def measure_load(
    url: str,
    requests: Sequence[PreparedRequest],
    num_clients: int,
    pid: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[LoadFigures, LoadRun]:
    """Runs the load once. `pid` is the server's first process."""
    before = _cpu_seconds(pid)
    run = asyncio.run(run_load(url, requests, num_clients, headers))
    used = _cpu_seconds(pid) - before
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
    """Median of each figure over repeats of one load; failures are added up."""
    failures: Counter[str] = Counter()
    for figures in repeats:
        failures.update(figures.failures)
    sizes = sorted({size for figures in repeats for size in figures.p50_s_by_passages})
    return LoadFigures(
        num_clients=repeats[0].num_clients,
        num_requests=repeats[0].num_requests,
        p50_s=_median([figures.p50_s for figures in repeats]),
        p95_s=_median([figures.p95_s for figures in repeats]),
        p99_s=_median([figures.p99_s for figures in repeats]),
        passages_per_s=statistics.median(figures.passages_per_s for figures in repeats),
        cpu_s_per_1k_passages=_median([figures.cpu_s_per_1k_passages for figures in repeats]),
        p50_s_by_passages={
            size: statistics.median(
                figures.p50_s_by_passages[size] for figures in repeats if size in figures.p50_s_by_passages
            )
            for size in sizes
        },
        failures=dict(failures),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _cpu_seconds(pid: int | None) -> float:
    if pid is None:
        return 0.0
    from rerank_service.tools.bench.cpu_time import cpu_seconds  # psutil comes with the extra `bench`

    return cpu_seconds(pid)
