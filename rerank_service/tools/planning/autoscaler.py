"""Simulates a cluster that is scaled by the service's autoscaling policy, with Serve's own delays."""

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from ray.serve.autoscaling_policy import _apply_delay_logic, _apply_scaling_factors
from ray.serve.config import AutoscalingConfig as ServeAutoscalingConfig

from rerank_service.app import serve_autoscaling
from rerank_service.config import AutoscalingConfig
from rerank_service.messages import OFFERED, SPEED, START, WAITING
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.cluster import SimulatedCluster

__all__ = ["TICK_S", "Autoscaler", "ScaledCluster"]

TICK_S = 0.1
"""Period of Serve's control loop."""
_RECORDS = 5
"""Records per look-back period, unless replicas report more often."""


class _TimedValue(NamedTuple):
    """A recorded value, like Serve's `TimeStampedValue`."""

    timestamp: float
    value: float


@dataclass
class _Context:
    """The fields of Serve's `AutoscalingContext` that the policy or Serve's delays need."""

    current_time: float
    current_num_replicas: int
    target_num_replicas: int
    capacity_adjusted_min_replicas: int
    config: ServeAutoscalingConfig
    policy_state: dict[str, Any]
    raw_metrics: dict[str, dict[str, list[_TimedValue]]]
    total_num_requests: float = 0.0


class Autoscaler:
    """Makes the decisions of Serve's controller.

    All replicas report at the same time: they record counters `_RECORDS` times per look-back period and send the
    records once per reporting interval.
    """

    def __init__(self, config: AutoscalingConfig, tokens_per_s: float, start_s: float) -> None:
        """Every replica reports the speed `tokens_per_s` and the startup time `start_s`."""
        self._options = ServeAutoscalingConfig(**serve_autoscaling(config))
        self._policy = self._options.policy.get_policy()(**self._options.policy.policy_kwargs)
        self._constant = {SPEED: tokens_per_s, START: start_s}
        self._record_s = min(self._options.look_back_period_s / _RECORDS, self._options.metrics_interval_s)
        self._records: dict[str, deque[_TimedValue]] = {OFFERED: deque(), WAITING: deque()}
        self._reported: dict[str, dict[str, list[_TimedValue]]] = {}
        self._reported_at_s = self._recorded_at_s = float("-inf")
        self._policy_state: dict[str, Any] = {}
        self._delays: dict[Any, Any] = {}
        self._recovered_at_s = float("-inf")
        self.target: int = config.initial_replicas or config.min_replicas

    def restart(self, now_s: float, recovery_s: float) -> None:
        """Simulates a crash of Serve's controller. The new controller knows only the target at first, and finds the
        replicas after `recovery_s`."""
        self._policy_state, self._delays, self._reported = {}, {}, {}
        self._recovered_at_s = self._reported_at_s = now_s + recovery_s

    def decide(self, now_s: float, offered_tokens: float, waiting_tokens: float, running: int) -> int:
        """Returns the target number of replicas. Call it every `TICK_S`. `offered_tokens` is the total so far."""
        self._record(now_s, offered_tokens, waiting_tokens)
        running = running if now_s >= self._recovered_at_s else 0
        context: Any = _Context(
            now_s, running, self.target, self._options.min_replicas, self._options, self._policy_state, self._reported
        )
        wanted, self._policy_state = self._policy(context)
        scaled = _apply_scaling_factors(wanted, running, self._options)
        if running > 0:  # Serve scales up from zero without delay
            scaled, self._delays = _apply_delay_logic(scaled, self.target, self._options, self._delays, _now=now_s)
        self.target = min(max(scaled, self._options.min_replicas), self._options.max_replicas)
        return self.target

    def _record(self, now_s: float, offered_tokens: float, waiting_tokens: float) -> None:
        tolerance_s = TICK_S / 2  # ticks are not exact multiples of the intervals
        if now_s - self._recorded_at_s > self._record_s - tolerance_s:
            self._recorded_at_s = now_s
            for name, value in ((OFFERED, offered_tokens), (WAITING, waiting_tokens)):
                points = self._records[name]
                points.append(_TimedValue(now_s, value))
                while points[0].timestamp < now_s - self._options.look_back_period_s:
                    points.popleft()
        if now_s - self._reported_at_s > self._options.metrics_interval_s - tolerance_s:
            self._reported_at_s = now_s
            self._reported = {name: {"all": list(points)} for name, points in self._records.items()}
            self._reported |= {name: {"all": [_TimedValue(now_s, value)]} for name, value in self._constant.items()}


class ScaledCluster:
    """A cluster whose autoscaler adds or removes replicas. Like Serve's controller, the autoscaler decides ten times
    per second."""

    def __init__(
        self, cluster: SimulatedCluster, autoscaler: Autoscaler, clock: Clock, replica_start_s: float, until_s: float
    ) -> None:
        self.replicas: list[int] = []
        """Number of running replicas, one value per second."""
        self.targets: list[int] = []
        """Target of the autoscaler at each tick."""
        self._cluster = cluster
        self._autoscaler = autoscaler
        self._clock = clock
        self._replica_start_s = replica_start_s
        self._until_s = until_s
        self._num_starting = 0

    def start(self) -> None:
        """Starts the autoscaler, which stops at `until_s`."""
        self._clock.at(self._clock.now_s, self._tick, 0)

    def _tick(self, number: int) -> None:
        cluster = self._cluster
        now_s = number * TICK_S
        target = self._autoscaler.decide(
            now_s, cluster.offered_tokens, cluster.outstanding_tokens, cluster.num_replicas
        )
        self.targets.append(target)
        for _ in range(target - cluster.num_replicas - self._num_starting):
            self._num_starting += 1
            self._clock.at(now_s + self._replica_start_s, self._add)
        for _ in range(cluster.num_replicas - target):
            cluster.remove_replica()
        if number % round(1 / TICK_S) == 0:
            self.replicas.append(cluster.num_replicas)
        if now_s < self._until_s:
            self._clock.at((number + 1) * TICK_S, self._tick, number + 1)

    def _add(self) -> None:
        self._num_starting -= 1
        self._cluster.add_replica()
