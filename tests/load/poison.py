"""The service around an engine that dies of one query, as a real one may of a bug in a driver."""

import os
import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.serve import Application

from rerank_service.app import bind_app
from rerank_service.config import parse_config
from rerank_service.engine import CacheCounts, DeviceFacts, EncodedPair, Engine, TokenSpan, Truncate
from rerank_service.replica import Replica

__all__ = ["MODEL", "POISON", "build_app", "poison_application"]

MODEL = "fragile"
POISON = "drink me"


class _Pending:
    is_ready = True

    def __init__(self, count: int) -> None:
        self._count = count

    def wait(self) -> list[float]:
        return [1.0] * self._count


class FragileEngine:
    """Dies as a process does, without an exception."""

    max_in_flight = 1
    memory_tokens: int | None = None
    window_tokens = 512
    default_batch_tokens = 1024
    cache_counts = CacheCounts(0, 0)
    device_facts = DeviceFacts(0, 0.0, None)
    precision = "float32"
    description = "fragile"

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[EncodedPair]:
        ids = np.full(1, query == POISON, dtype=np.int32)
        return [EncodedPair(ids, 10, False) for _ in passages]

    def token_spans(self, texts: Sequence[str]) -> list[list[TokenSpan]]:
        return [[] for _ in texts]

    def launch(self, pairs: Sequence[EncodedPair]) -> _Pending:
        if any(pair.token_ids[0] for pair in pairs):
            os.kill(os.getpid(), signal.SIGKILL)
        return _Pending(len(pairs))

    def score(self, pairs: Sequence[EncodedPair]) -> list[float]:
        return self.launch(pairs).wait()


class FragileReplica(Replica):
    def load(self) -> Engine[Any]:
        return FragileEngine()


def build_app(args: dict[str, Any]) -> Application:
    return bind_app(parse_config(args), FragileReplica)


def poison_application() -> dict[str, Any]:
    """As it stands in a Serve configuration: four replicas, at `/poison`."""
    model = {
        "id": MODEL,
        "checkpoint": {"source": "/nowhere"},
        "replica": {"num_cpus": 0.05},
        "autoscaling": {"min_replicas": 4, "max_replicas": 4},
    }
    import_path = f"{build_app.__module__}:{build_app.__name__}"
    return {"name": "poison", "route_prefix": "/poison", "import_path": import_path, "args": {"models": [model]}}
