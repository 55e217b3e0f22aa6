"""The service around an engine whose faults a test chooses: a pair that kills its process, a device that is lost, a
forward pass that never returns. Its logits are the real engine's.
"""

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
from rerank_service.replica import Replica

__all__ = ["POISON", "Fault", "break_one", "broken_pid", "build_app", "faulty_application"]

POISON = "drink me"
"""A query whose pairs kill the process that scores them, without an exception, as a bug in a driver may."""


class Fault(StrEnum):
    """What befalls one replica, from its next forward pass until its process ends."""

    STICKY = "sticky"
    """Every pass raises what torch raises after an illegal memory access: the CUDA context is lost."""
    HANG = "hang"
    """The pass never returns."""


class FaultyEngine:
    """The real engine, until a fault befalls it."""

    def __init__(self, engine: Engine[Any], faults: Path, tokens_per_s: float | None) -> None:
        self._engine = engine
        self._faults = faults
        self._tokens_per_s = tokens_per_s
        self._fault: Fault | None = None
        self._poisoned: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[Any]:
        pairs = self._engine.tokenise(query, passages, truncate)
        if query == POISON:
            self._poisoned += pairs
        return pairs

    def launch(self, pairs: Sequence[Any]) -> Any:
        if any(pair in self._poisoned for pair in pairs):
            os.kill(os.getpid(), signal.SIGKILL)
        self._fault = self._fault or _claimed(self._faults)
        if self._fault is Fault.STICKY:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if self._fault is Fault.HANG:
            threading.Event().wait()
        done_at = time.perf_counter() + sum(pair.num_tokens for pair in pairs) / (self._tokens_per_s or float("inf"))
        pending = self._engine.launch(pairs)
        time.sleep(max(0.0, done_at - time.perf_counter()))
        return pending

    def score(self, pairs: Sequence[Any]) -> list[float]:
        logits: list[float] = self.launch(pairs).wait()
        return logits


def break_one(faults: Path, fault: Fault) -> None:
    """Whichever replica launches the next forward pass breaks, and no other."""
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
            return FaultyEngine(super().load(), faults, tokens_per_s)

    return bind_app(parse_config(args["settings"]), FaultyReplica)


def faulty_application(
    name: str, config: RerankConfig, faults: Path, tokens_per_s: float | None = None
) -> dict[str, Any]:
    """As it stands in a Serve configuration, at `/NAME`."""
    args = {"settings": config.model_dump(mode="json"), "faults": str(faults), "tokens_per_s": tokens_per_s}
    import_path = f"{build_app.__module__}:{build_app.__name__}"
    return {"name": name, "route_prefix": f"/{name}", "import_path": import_path, "args": args}
