"""Measures the stack's throughput as a share of device throughput, with one, two, four and eight replicas."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.stack.launch import started
from benchmarks.stack.offered import Answered, OfferedRequest, draw_request, offer_closed, outcomes
from rerank_service.tools.bench.apis import NIM

__all__ = ["measure_scaling", "steady_tokens_per_s"]

_TOKENS_PER_S = 10_000.0
"""Speed of one replica; low enough for two CPUs to run the stack around eight replicas."""
_CLIENTS_PER_REPLICA = 6
_WARM_UP_S, _MEASURED_S = 5.0, 25.0


@dataclass(frozen=True)
class Scaling:
    """Figures for one number of replicas."""

    replicas: int
    clients: int
    tokens_per_s: float
    efficiency: float
    """Throughput as a share of device throughput."""
    outcomes: dict[str, int]


def measure_scaling(replica_counts: Sequence[int], haproxy: bool) -> list[dict[str, Any]]:
    """Measures each number of replicas with a closed loop and skewed request sizes."""
    return [asdict(_measure(count, haproxy)) for count in replica_counts]


def _measure(num_replicas: int, haproxy: bool) -> Scaling:
    num_clients = _CLIENTS_PER_REPLICA * num_replicas
    with started({"tokens_per_s": _TOKENS_PER_S}, replicas=(num_replicas, num_replicas), haproxy=haproxy) as server:
        duration_s = _WARM_UP_S + _MEASURED_S
        answers = asyncio.run(offer_closed(server.url + NIM.path, questions(0), num_clients, duration_s))
    tokens_per_s = steady_tokens_per_s(answers, _WARM_UP_S, duration_s)
    efficiency = tokens_per_s / (num_replicas * _TOKENS_PER_S)
    return Scaling(num_replicas, num_clients, tokens_per_s, efficiency, outcomes(answers))


def questions(seed: int) -> Iterator[OfferedRequest]:
    """An endless sequence of requests, determined by the seed."""
    rng = random.Random(seed)  # noqa: S311
    while True:
        yield draw_request(rng)


def steady_tokens_per_s(answers: Sequence[Answered], from_s: float, to_s: float) -> float:
    """Throughput of correct answers in a window of the run. A request that is partly in the window counts in part."""
    start = min(answer.sent_at for answer in answers)
    total = 0.0
    for answer in answers:
        if answer.outcome == "right":
            overlap_s = min(answer.done_at, start + to_s) - max(answer.sent_at, start + from_s)
            took_s = max(answer.done_at - answer.sent_at, 1e-6)
            total += answer.num_tokens * min(1.0, max(0.0, overlap_s) / took_s)
    return total / (to_s - from_s)
