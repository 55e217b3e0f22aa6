"""Measures the CPU use of Serve's controller for idle replicas, which send reports and answer health checks."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.stack.costs import cpu_by_role
from benchmarks.stack.launch import started

__all__ = ["measure_control"]

_COUNTS = (1, 20)
_INTERVALS_S = (1.0, 10.0)
_SETTLE_S, _MEASURED_S = 8.0, 20.0


@dataclass(frozen=True)
class Control:
    """Figures of an idle service."""

    replicas: int
    interval_s: float
    """Interval between reports, and between health checks."""
    cpus: dict[str, float]
    """Number of busy CPUs by kind of process."""


def measure_control() -> dict[str, Any]:
    """Figures by number of replicas and interval, and the controller's cost per additional replica."""
    rows = [_measure(count, interval_s) for interval_s in _INTERVALS_S for count in _COUNTS]
    us_a_replica, idle_cpus = {}, {}
    for interval_s in _INTERVALS_S:
        few, many = (row for row in rows if row.interval_s == interval_s)
        slope = (many.cpus["controller"] - few.cpus["controller"]) / (many.replicas - few.replicas)
        us_a_replica[f"{interval_s:g}"] = 1e6 * slope
        idle_cpus[f"{interval_s:g}"] = few.cpus["controller"] - slope * few.replicas
    idle = [asdict(row) for row in rows]
    return {"idle": idle, "controller_us_a_replica": us_a_replica, "controller_idle_cpus": idle_cpus}


def _measure(num_replicas: int, interval_s: float) -> Control:
    autoscaling = {"min_replicas": num_replicas, "max_replicas": num_replicas}
    model = {
        "autoscaling": autoscaling | {"metrics_interval_s": interval_s, "look_back_period_s": 3 * interval_s},
        "replica": {"num_cpus": 0, "health_check_period_s": interval_s},
    }
    with started({"tokens_per_s": None}, haproxy=True, model=model) as server:
        time.sleep(_SETTLE_S)
        before, began = cpu_by_role(server.pid), time.perf_counter()
        time.sleep(_MEASURED_S)
        used, took_s = cpu_by_role(server.pid), time.perf_counter() - began
    cpus = {role: (used[role] - before[role]) / took_s for role in used}
    return Control(num_replicas, interval_s, cpus)
