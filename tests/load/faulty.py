"""The service around an engine whose faults a test chooses: a pair that kills its process, a device that is lost, a
forward pass that never returns. Its logits are the real engine's.
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
"""A query whose pairs kill the process that scores them, without an exception, as a bug in a driver may."""


class Fault(StrEnum):
    """What befalls one replica, from its next forward pass until its process ends."""

    STICKY = "sticky"
    """Every pass raises what torch raises after an illegal memory access: the process's CUDA context is lost."""
    HANG = "hang"
    """The pass never returns."""


class _FaultyForward:
    """In place of an engine's forward pass, where torch itself raises; everything around it is the service's own."""

    def __init__(self, engine: Any, faults: Path, tokens_per_s: float | None) -> None:
        self._tokenise, self._forward = engine.tokenise, engine.forward
        engine.tokenise, engine.forward = self.tokenise, self.forward
        self._faults = faults
        self._tokens_per_s = tokens_per_s
        self._fault: Fault | None = None
        self._num_passes = 0
        self._poisoned: list[Any] = []

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[Any]:
        """The engine's pairs; those of a poison are remembered."""
        pairs: list[Any] = self._tokenise(query, passages, truncate)
        if query == POISON:
            self._poisoned += pairs
        return pairs

    def forward(self, pairs: Sequence[Any]) -> torch.Tensor:
        """The engine's logits, at the set speed, or the fault that has befallen it."""
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
"""Of each process, before a fault: the scheduler knows by then how long a pass takes."""


def break_one(faults: Path, fault: Fault) -> None:
    """Whichever replica runs the next forward pass breaks, and no other."""
    (faults / fault).touch()


def broken_pid(faults: Path, fault: Fault) -> int | None:
    """Process of the replica that broke last; null before it did."""
    pids = [file.name.removeprefix(f"{fault}-") for file in faults.glob(f"{fault}-*")]
    return int(pids[0]) if pids else None


def _claimed(faults: Path) -> Fault | None:
    for fault in Fault:
        try:
            (faults / fault).rename(faults / f"{fault}-{os.getpid()}")  # one process succeeds
        except FileNotFoundError:
            continue
        return fault
    return None


def build_app(args: dict[str, Any]) -> Application:
    """`args` has `settings`, a `RerankConfig` as a dict; `faults`, the folder of `break_one`; and `tokens_per_s`, the
    speed of each replica, null for the engine's own.
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
    """As it stands in a Serve configuration, at `/NAME`."""
    args = {"settings": config.model_dump(mode="json"), "faults": str(faults), "tokens_per_s": tokens_per_s}
    import_path = f"{build_app.__module__}:{build_app.__name__}"
    return {"name": name, "route_prefix": f"/{name}", "import_path": import_path, "args": args}
