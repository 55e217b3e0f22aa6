"""What Serve's controller spends on replicas that do nothing but report and be checked."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.stack.costs import cpu_by_role
from benchmarks.stack.launch import started

__all__ = ["measure_control"]

_COUNTS = (1, 8, 20)
_SETTLE_S, _MEASURED_S = 8.0, 20.0


@dataclass(frozen=True)
class Control:
    """An idle service."""

    replicas: int
    cpus: dict[str, float]
    """Busy ones, by kind of process."""


def measure_control() -> dict[str, Any]:
    """By replicas, and what one more costs the controller: the slope between the fewest and the most."""
    rows = [_measure(count) for count in _COUNTS]
    few, many = rows[0], rows[-1]
    slope = (many.cpus["controller"] - few.cpus["controller"]) / (many.replicas - few.replicas)
    return {
        "idle": [asdict(row) for row in rows],
        "controller_us_a_replica": 1e6 * slope,
        "controller_idle_cpus": few.cpus["controller"] - slope * few.replicas,
    }


def _measure(num_replicas: int) -> Control:
    with started({"tokens_per_s": None}, replicas=(num_replicas, num_replicas), haproxy=True) as server:
        time.sleep(_SETTLE_S)
        before, began = cpu_by_role(server.pid), time.perf_counter()
        time.sleep(_MEASURED_S)
        used, took_s = cpu_by_role(server.pid), time.perf_counter() - began
    return Control(num_replicas, {role: (used[role] - before[role]) / took_s for role in used})
