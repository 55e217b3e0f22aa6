"""Replicas on processors that differ: the first has bfloat16 instructions, all others only AVX2.

The capabilities are faked where the engine asks for them; everything else is real.
"""

from pathlib import Path
from typing import Any

from ray.serve import Application

from rerank_service.app import bind_app
from rerank_service.config import parse_config
from rerank_service.engine import Engine
from rerank_service.replica.replica import Replica

__all__ = ["build_app"]


def build_app(args: dict[str, Any]) -> Application:
    """Builds the application. `args` contains `settings`, a `RerankConfig` as a dict, and `folder`: while it has the
    file `all-are-strong`, no further replica is weak."""
    folder = Path(args["folder"])

    class MixedReplica(Replica):
        def load(self) -> Engine[Any]:
            import torch

            from rerank_service.engine import choose_precision

            is_strong = (folder / "all-are-strong").exists() or _is_first(folder)
            flags, in_use = ({"amx_bf16": True, "amx_int8": True}, "AVX512") if is_strong else ({}, "AVX2")
            torch.cpu.get_capabilities = lambda: flags
            torch.backends.cpu.get_cpu_capability = lambda: in_use
            choose_precision.layer_seconds = lambda precisions, size, *, is_decoder: (0.003, 0.002)  # type: ignore[assignment]
            return super().load()

    return bind_app(parse_config(args["settings"]), MixedReplica)


def _is_first(folder: Path) -> bool:
    try:
        (folder / "first").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
