"""An application whose replicas are real, except for a simulated device of fixed speed.

HTTP, router, shards, collector, tokenising threads and scheduler are the service's own. The simulated engine estimates
tokens from bytes and returns logits that depend only on the text.
"""

import math
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray.serve import Application

from rerank_service.app import bind_app
from rerank_service.config import parse_config
from rerank_service.engine import CacheCounts, DeviceFacts, EncodedPair, Engine, TokenSpan, Truncate
from rerank_service.messages import Numerics, StartTimes
from rerank_service.replica.replica import Replica
from rerank_service.routing.ranker import estimate_tokens

__all__ = ["SimulatedEngine", "build_app", "simulated_logit"]

_NO_TOKENS = np.empty(0, dtype=np.int32)


def simulated_logit(query: str, passage: str) -> float:
    """A logit between -8 and 8, which is the same in every process."""
    return zlib.crc32(f"{query}\n{passage}".encode()) % 16_001 / 1000 - 8


@dataclass(frozen=True, slots=True, eq=False)
class _SimulatedPair(EncodedPair):
    logit: float


class _Pending:
    def __init__(self, logits: list[float], done_at: float) -> None:
        self._logits = logits
        self._done_at = done_at

    @property
    def is_ready(self) -> bool:
        return time.perf_counter() >= self._done_at

    def wait(self) -> list[float]:
        left_s = self._done_at - time.perf_counter()
        if left_s > 0:
            time.sleep(left_s)
        return self._logits


class SimulatedEngine:
    """An engine that, like a GPU, accepts two batches in flight and processes one at a time."""

    max_in_flight = 2
    memory_tokens: int | None = None
    window_tokens = 8192
    default_batch_tokens = 16_384
    aligner = None
    cache_counts = CacheCounts(0, 0)
    device_facts = DeviceFacts(0, None)
    precision = "float32"
    numerics = Numerics("float32 on a simulated device", "simulated")
    is_batch_invariant = True
    unverified = None
    start_times = StartTimes()
    description = "simulated"

    def __init__(self, tokens_per_s: float) -> None:
        """With infinite speed, this is a null engine, for measuring only the stack around it."""
        self._tokens_per_s = tokens_per_s
        self._free_at = 0.0

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[_SimulatedPair]:
        return [
            _SimulatedPair(_NO_TOKENS, estimate_tokens(query, passage), False, simulated_logit(query, passage))
            for passage in passages
        ]

    def passage_room(self, query: str) -> int:
        return self.window_tokens

    def token_spans(self, texts: Sequence[str]) -> list[list[TokenSpan]]:
        return [[] for _ in texts]

    def launch(self, pairs: Sequence[_SimulatedPair]) -> _Pending:
        num_tokens = sum(pair.num_tokens for pair in pairs)
        self._free_at = max(self._free_at, time.perf_counter()) + num_tokens / self._tokens_per_s
        return _Pending([pair.logit for pair in pairs], self._free_at)

    def score(self, pairs: Sequence[_SimulatedPair]) -> list[float]:
        return self.launch(pairs).wait()


def build_app(args: dict[str, Any]) -> Application:
    """Builds the application with simulated replicas.

    `args` contains `settings`, a `RerankConfig` as a dict; `tokens_per_s`, the speed of a replica, or null for a null
    engine; `start_s`, the startup time of a replica; and `ready_folder`, in which each replica that is ready creates a
    file named after its process id.
    """
    tokens_per_s = args["tokens_per_s"] or math.inf
    start_s, ready_folder = args.get("start_s", 0.0), args.get("ready_folder")

    class SimulatedReplica(Replica):
        def load(self) -> Engine[Any]:
            time.sleep(start_s)
            if ready_folder:
                (Path(ready_folder) / str(os.getpid())).touch()
            return SimulatedEngine(tokens_per_s)

    return bind_app(parse_config(args["settings"]), SimulatedReplica)
