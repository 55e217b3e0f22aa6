"""The service with an engine that fails on demand: a pair kills its process, a device is lost, or a forward pass never
returns. Its logits are those of the real engine.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from ray.serve import Application

from rerank_service.app import bind_app
from rerank_service.config import RerankConfig, parse_config
from rerank_service.engine import Engine, Truncate
from rerank_service.replica.replica import Replica

__all__ = ["POISON", "Fault", "break_one", "broken_pid", "build_app", "faulty_application"]

POISON = "drink me"
"""A query whose pairs kill the scoring process without an exception, as a bug in a driver can."""


class Fault(StrEnum):
    """A fault of one replica, from its next forward pass until its process ends."""

    STICKY = "sticky"
    """Every pass raises torch's error for an illegal memory access, as after the loss of the CUDA context."""
    HANG = "hang"
    """The pass never returns."""


class _FaultyForward:
    """Replaces only the forward pass of an engine, in which torch would raise an error. The surrounding code is the
    service's own."""

    def __init__(self, engine: Any, faults: Path, tokens_per_s: float | None) -> None:
        self._tokenise, self._forward = engine.tokenise, engine.forward
        engine.tokenise, engine.forward = self.tokenise, self.forward
        self._faults = faults
        self._tokens_per_s = tokens_per_s
        self._fault: Fault | None = None
        self._num_passes = 0
        self._poisoned: list[Any] = []

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[Any]:
        """Tokenises with the engine, and remembers the pairs of the query `POISON`."""
        pairs: list[Any] = self._tokenise(query, passages, truncate)
        if query == POISON:
            self._poisoned += pairs
        return pairs

    def forward(self, pairs: Sequence[Any]) -> torch.Tensor:
        """Returns the engine's logits at the configured speed, or causes this replica's fault."""
        if any(pair in self._poisoned for pair in pairs):
            os.kill(os.getpid(), signal.SIGKILL)
        self._num_passes += 1
        if self._fault is None and self._num_passes > _SOUND_PASSES:
            self._fault = _claimed(self._faults)
        if self._fault is Fault.STICKY:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if self._fault is Fault.HANG:
            threading.Event().wait()
        done_at = time.perf_counter() + sum(pair.num_tokens for pair in pairs) / (self._tokens_per_s or math.inf)
        logits: torch.Tensor = self._forward(pairs)
        time.sleep(max(0.0, done_at - time.perf_counter()))
        return logits


_SOUND_PASSES = 20
"""Number of forward passes of a process before its fault. By then, the scheduler knows how long a pass takes."""


def break_one(faults: Path, fault: Fault) -> None:
    """Breaks only the replica that runs the next forward pass."""
    (faults / fault).touch()


def broken_pid(faults: Path, fault: Fault) -> int | None:
    """Process id of the broken replica; null while none is broken."""
    pids = [file.name.removeprefix(f"{fault}-") for file in faults.glob(f"{fault}-*")]
    return int(pids[0]) if pids else None


def _claimed(faults: Path) -> Fault | None:
    for fault in Fault:
        try:
            (faults / fault).rename(faults / f"{fault}-{os.getpid()}")  # only one process succeeds
        except FileNotFoundError:
            continue
        return fault
    return None


def build_app(args: dict[str, Any]) -> Application:
    """Builds the application. `args` has `settings`, a `RerankConfig` as a dict; `faults`, the folder of `break_one`;
    and `tokens_per_s`, the speed of each replica (null: the speed of the engine).
    """
    faults, tokens_per_s = Path(args["faults"]), args["tokens_per_s"]

    class FaultyReplica(Replica):
        def load(self) -> Engine[Any]:
            engine = super().load()
            _FaultyForward(engine, faults, tokens_per_s)
            return engine

    return bind_app(parse_config(args["settings"]), FaultyReplica)


def faulty_application(
    name: str, config: RerankConfig, faults: Path, tokens_per_s: float | None = None
) -> dict[str, Any]:
    """The application at `/NAME`, as an entry of a Serve configuration."""
    args = {"settings": config.model_dump(mode="json"), "faults": str(faults), "tokens_per_s": tokens_per_s}
    import_path = f"{build_app.__module__}:{build_app.__name__}"
    return {"name": name, "route_prefix": f"/{name}", "import_path": import_path, "args": args}
