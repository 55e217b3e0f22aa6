"""Measures the latency under Poisson arrivals at 70% load, with one, two, four and eight replicas."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.stack.launch import started
from benchmarks.stack.offered import OfferedRequest, offer_open, outcomes, schedule
from benchmarks.stack.scaling import questions
from rerank_service.tools.bench.apis import NIM

__all__ = ["TOKENS_PER_S", "measure_open_load", "schedule_of"]

TOKENS_PER_S = 10_000.0
_UTILISATION = 0.7
_REQUESTS = 500
"""Approximate number of requests per run; five of them are slower than the p99."""
_MEAN_TOKENS = 2_400
_WARM_UP_S = 3.0
_SEED = 11


@dataclass(frozen=True)
class OpenLoad:
    """Latencies of a run, in seconds."""

    replicas: int
    offered_tokens_per_s: float
    duration_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    outcomes: dict[str, int]


def schedule_of(num_replicas: int) -> tuple[float, Iterator[tuple[float, OfferedRequest]]]:
    """Duration of a run, and its requests with their times; every call returns the same."""
    load = _UTILISATION * num_replicas * TOKENS_PER_S
    duration_s = _REQUESTS * _MEAN_TOKENS / load
    return duration_s, schedule(questions(_SEED), load, duration_s, random.Random(_SEED))  # noqa: S311


def measure_open_load(replica_counts: Sequence[int], haproxy: bool) -> list[dict[str, Any]]:
    """Measures a service of each size."""
    return [asdict(_measure(count, haproxy)) for count in replica_counts]


def _measure(num_replicas: int, haproxy: bool) -> OpenLoad:
    load = _UTILISATION * num_replicas * TOKENS_PER_S
    duration_s, _ = schedule_of(num_replicas)
    with started({"tokens_per_s": TOKENS_PER_S}, replicas=(num_replicas, num_replicas), haproxy=haproxy) as server:
        url = server.url + NIM.path
        asyncio.run(offer_open(url, questions(0), load / 2, _WARM_UP_S, random.Random(0)))  # noqa: S311
        rng = random.Random(_SEED)  # noqa: S311
        answers = asyncio.run(offer_open(url, questions(_SEED), load, duration_s, rng))
    took = [answer.done_at - answer.sent_at for answer in answers]
    p50_s, p95_s, p99_s = (float(np.percentile(took, share, method="inverted_cdf")) for share in (50, 95, 99))
    offered = sum(answer.num_tokens for answer in answers) / duration_s
    return OpenLoad(num_replicas, offered, duration_s, p50_s, p95_s, p99_s, outcomes(answers))
