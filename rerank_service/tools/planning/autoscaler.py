"""The service's autoscaling policy inside Serve's own delays, on a virtual clock. Knows nothing of requests."""

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from ray.serve.autoscaling_policy import _apply_delay_logic, _apply_scaling_factors
from ray.serve.config import AutoscalingConfig as ServeAutoscalingConfig

from rerank_service.app import serve_autoscaling
from rerank_service.config import AutoscalingConfig
from rerank_service.messages import OFFERED, SPEED, START, WAITING

__all__ = ["TICK_S", "Autoscaler"]

TICK_S = 0.1
"""Of Serve's control loop."""
_RECORDS = 5
"""That a replica makes in a look-back period, unless it reports more often."""


class _TimedValue(NamedTuple):
    """A record, as Serve's `TimeStampedValue`."""

    timestamp: float
    value: float


@dataclass
class _Context:
    """Of Serve's `AutoscalingContext` what the policy and Serve's delays read."""

    current_time: float
    current_num_replicas: int
    target_num_replicas: int
    capacity_adjusted_min_replicas: int
    config: ServeAutoscalingConfig
    policy_state: dict[str, Any]
    raw_metrics: dict[str, dict[str, list[_TimedValue]]]
    total_num_requests: float = 0.0


class Autoscaler:
    """Decides as Serve's controller does. All replicas report together: counters that they record `_RECORDS` times in a
    look-back period and send once a reporting interval.
    """

    def __init__(self, config: AutoscalingConfig, tokens_per_s: float, start_s: float) -> None:
        """`tokens_per_s` and `start_s` are what each replica reports of itself."""
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
        """Serve's controller dies and recovers: it keeps the target alone, and finds the replicas again later."""
        self._policy_state, self._delays, self._reported = {}, {}, {}
        self._recovered_at_s = self._reported_at_s = now_s + recovery_s

    def decide(self, now_s: float, offered_tokens: float, waiting_tokens: float, running: int) -> int:
        """How many replicas there should be; call it each `TICK_S`. `offered_tokens` is the total so far."""
        self._record(now_s, offered_tokens, waiting_tokens)
        running = running if now_s >= self._recovered_at_s else 0
        context: Any = _Context(
            now_s, running, self.target, self._options.min_replicas, self._options, self._policy_state, self._reported
        )
        wanted, self._policy_state = self._policy(context)
        scaled = _apply_scaling_factors(wanted, running, self._options)
        if running > 0:  # from zero Serve waits for nothing
            scaled, self._delays = _apply_delay_logic(scaled, self.target, self._options, self._delays, _now=now_s)
        self.target = min(max(scaled, self._options.min_replicas), self._options.max_replicas)
        return self.target

    def _record(self, now_s: float, offered_tokens: float, waiting_tokens: float) -> None:
        is_due = TICK_S / 2  # a tick early is nearer than a tick late
        if now_s - self._recorded_at_s > self._record_s - is_due:
            self._recorded_at_s = now_s
            for name, value in ((OFFERED, offered_tokens), (WAITING, waiting_tokens)):
                points = self._records[name]
                points.append(_TimedValue(now_s, value))
                while points[0].timestamp < now_s - self._options.look_back_period_s:
                    points.popleft()
        if now_s - self._reported_at_s > self._options.metrics_interval_s - is_due:
            self._reported_at_s = now_s
            self._reported = {name: {"all": list(points)} for name, points in self._records.items()}
            self._reported |= {name: {"all": [_TimedValue(now_s, value)]} for name, value in self._constant.items()}
