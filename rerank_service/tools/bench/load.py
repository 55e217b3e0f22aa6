"""Closed-loop load over HTTP: each client sends its next request as soon as the previous one is answered."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from rerank_service.tools.bench.apis import PreparedRequest

__all__ = ["LoadRun", "Reply", "post", "run_load"]

_TIMEOUT_S = 600
"""Timeout of a request, far above any server's own limit."""

_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """Reply to a request, or the failure of its connection."""

    num_passages: int
    status: int | None
    """HTTP status; null if the connection failed."""

    latency_s: float
    body: bytes

    @property
    def is_ok(self) -> bool:
        return self.status == 200


@dataclass(frozen=True)
class LoadRun:
    """All replies of a run, in the order of the requests."""

    answers: list[Reply]
    wall_s: float

    @property
    def failures(self) -> dict[str, int]:
        """Number of failed requests by status; `no answer` for failed connections."""
        return dict(Counter(str(answer.status or "no answer") for answer in self.answers if not answer.is_ok))

    @property
    def num_passages(self) -> int:
        """Number of passages in the answered requests."""
        return sum(answer.num_passages for answer in self.answers if answer.is_ok)

    @property
    def passages_per_s(self) -> float:
        return self.num_passages / self.wall_s

    def latency_s(self, percentile: float) -> float | None:
        """Percentile of the latency of answered requests; null if none was answered."""
        latencies = [answer.latency_s for answer in self.answers if answer.is_ok]
        return float(np.percentile(latencies, percentile)) if latencies else None

    def median_s_by_passages(self) -> dict[int, float]:
        """Median latency of answered requests by number of passages, smallest first."""
        latencies: dict[int, list[float]] = defaultdict(list)
        for answer in self.answers:
            if answer.is_ok:
                latencies[answer.num_passages].append(answer.latency_s)
        return {size: float(np.median(latencies[size])) for size in sorted(latencies)}


async def run_load(
    url: str, requests: Sequence[PreparedRequest], num_clients: int, headers: Mapping[str, str] | None = None
) -> LoadRun:
    """Sends all requests to `url`, in order, from `num_clients` clients. Failed requests are counted, not repeated."""
    answers: list[Reply | None] = [None] * len(requests)
    pending = iter(enumerate(requests))
    limits = httpx.Limits(max_connections=num_clients)
    async with httpx.AsyncClient(headers=headers, timeout=_TIMEOUT_S, limits=limits) as client:
        started = time.perf_counter()
        clients = (_client(client, url, pending, answers) for _ in range(num_clients))
        await asyncio.gather(*clients)
        wall_s = time.perf_counter() - started
    return LoadRun([answer for answer in answers if answer is not None], wall_s)


async def post(client: httpx.AsyncClient, url: str, request: PreparedRequest) -> Reply:
    """Sends a request; a failed connection gives a reply without a status."""
    started = time.perf_counter()
    try:
        response = await client.post(url, content=request.body, headers=_JSON)
    except httpx.TransportError:
        return Reply(request.num_passages, None, time.perf_counter() - started, b"")
    return Reply(request.num_passages, response.status_code, time.perf_counter() - started, response.content)


async def _client(
    client: httpx.AsyncClient,
    url: str,
    pending: Iterator[tuple[int, PreparedRequest]],
    answers: list[Reply | None],
) -> None:
    for index, request in pending:
        answers[index] = await post(client, url, request)
