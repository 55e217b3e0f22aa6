"""Compares the service's request router with Serve's own, on requests of very different sizes."""

import asyncio
import random
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.stack.launch import MODEL, started
from benchmarks.stack.offered import offer_open, outcomes
from benchmarks.stack.scaling import questions
from rerank_service.tools.bench.apis import NIM

__all__ = ["measure_routers"]

_REPLICAS = 4
_TOKENS_PER_S = 10_000.0
_UTILISATION = 0.7
_DURATION_S = 60.0
_SERVES_OWN = "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"
_SMALL_TOKENS = 500


@dataclass(frozen=True)
class Routed:
    """Latencies of a run, in seconds."""

    router: str
    p50_s: float
    p95_s: float
    p99_s: float
    small_p99_s: float
    """p99 of requests with fewer than 500 tokens."""
    outcomes: dict[str, int]


def measure_routers(rounds: int) -> list[dict[str, Any]]:
    """Measures both routers in turn, with the same requests at the same times."""
    return [asdict(_measure(router, seed)) for seed in range(rounds) for router in ("fewest tokens", "power of two")]


def _measure(router: str, seed: int) -> Routed:
    overrides = [] if router == "fewest tokens" else [_override()]
    stack = {"tokens_per_s": _TOKENS_PER_S}
    with started(stack, replicas=(_REPLICAS, _REPLICAS), overrides=overrides) as server:
        load = _UTILISATION * _REPLICAS * _TOKENS_PER_S
        asked = questions(seed)
        answers = asyncio.run(offer_open(server.url + NIM.path, asked, load, _DURATION_S, random.Random(seed)))  # noqa: S311
    took = np.array([answer.done_at - answer.sent_at for answer in answers])
    small = took[[answer.num_tokens < _SMALL_TOKENS for answer in answers]]
    p50_s, p95_s, p99_s = (float(np.percentile(took, share)) for share in (50, 95, 99))
    return Routed(router, p50_s, p95_s, p99_s, float(np.percentile(small, 99)), outcomes(answers))


def _override() -> dict[str, Any]:
    return {"name": MODEL, "request_router_config": {"request_router_class": _SERVES_OWN}}
