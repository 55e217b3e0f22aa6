"""Measures overload: the throughput of answers within the deadline at three times the capacity."""

import asyncio
import random
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.stack.launch import started
from benchmarks.stack.offered import offer_closed, offer_open, outcomes
from benchmarks.stack.scaling import questions, steady_tokens_per_s
from rerank_service.tools.bench.apis import NIM

__all__ = ["measure_overload"]

_REPLICAS = 2
_TOKENS_PER_S = 10_000.0
_DEADLINE_S = 8.0
_FACTOR = 3.0
_WARM_UP_S, _MEASURED_S = 10.0, 40.0


@dataclass(frozen=True)
class Overload:
    """Figures of a run."""

    capacity_tokens_per_s: float
    """Throughput of the same service when a closed loop saturates it."""
    offered_tokens_per_s: float
    goodput_tokens_per_s: float
    """Throughput of correct answers within the deadline."""
    goodput_share: float
    """Goodput as a share of the capacity."""
    outcomes: dict[str, int]
    accepted_p50_s: float
    accepted_p99_s: float
    accepted_longest_s: float
    deadline_s: float
    refused_p99_s: float
    """Time until a refused request receives its reply."""


def measure_overload(haproxy: bool) -> dict[str, Any]:
    """Measures the capacity of a running service, then overloads it."""
    limits = {"request_timeout_s": _DEADLINE_S}
    stack = {"tokens_per_s": _TOKENS_PER_S}
    with started(stack, replicas=(_REPLICAS, _REPLICAS), haproxy=haproxy, limits=limits) as server:
        url = server.url + NIM.path
        closed = asyncio.run(offer_closed(url, questions(0), 6 * _REPLICAS, 20.0))
        capacity = steady_tokens_per_s(closed, 4.0, 20.0)
        offered = _FACTOR * _REPLICAS * _TOKENS_PER_S
        duration_s = _WARM_UP_S + _MEASURED_S
        answers = asyncio.run(offer_open(url, questions(1), offered, duration_s, random.Random(2)))  # noqa: S311
    goodput = steady_tokens_per_s(answers, _WARM_UP_S, duration_s)
    taken = [answer.done_at - answer.sent_at for answer in answers if answer.outcome == "right"]
    refused = [answer.done_at - answer.sent_at for answer in answers if answer.outcome == "503"]
    return asdict(
        Overload(
            capacity_tokens_per_s=capacity,
            offered_tokens_per_s=sum(answer.num_tokens for answer in answers) / duration_s,
            goodput_tokens_per_s=goodput,
            goodput_share=goodput / capacity,
            outcomes=outcomes(answers),
            accepted_p50_s=float(np.percentile(taken, 50)),
            accepted_p99_s=float(np.percentile(taken, 99)),
            accepted_longest_s=max(taken),
            deadline_s=_DEADLINE_S,
            refused_p99_s=float(np.percentile(refused, 99)) if refused else 0.0,
        )
    )
