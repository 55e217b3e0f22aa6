"""The service's autoscaling policy inside Serve's own delays, on a virtual clock. Knows nothing of requests."""

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from ray.serve.autoscaling_policy import _apply_delay_logic, _apply_scaling_factors
from ray.serve.config import AutoscalingConfig as ServeAutoscalingConfig

from rerank_service.app import serve_autoscaling
from rerank_service.autoscaling import ARRIVING, SPEED, START, WAITING
from rerank_service.config import AutoscalingConfig

__all__ = ["TICK_S", "Autoscaler"]

TICK_S = 0.1
"""Of Serve's control loop."""


class _Report(NamedTuple):
    at_s: float
    arriving: float
    waiting: float


@dataclass
class _Context:
    """Of Serve's `AutoscalingContext` what the policy reads."""

    current_time: float
    policy_state: dict[str, Any]
    aggregated_metrics: dict[str, dict[str, float]]
    total_num_requests: float = 0.0


class Autoscaler:
    """Decides as Serve's controller does: what replicas report is averaged over the look-back period, and a reporting
    interval old.
    """

    def __init__(self, config: AutoscalingConfig, tokens_per_s: float, start_s: float) -> None:
        """`tokens_per_s` and `start_s` are what each replica reports of itself."""
        self._options = ServeAutoscalingConfig(**serve_autoscaling(config))
        self._policy = self._options.policy.get_policy()(**self._options.policy.policy_kwargs)
        self._tokens_per_s = tokens_per_s
        self._start_s = start_s
        self._reports: deque[_Report] = deque()
        self._policy_state: dict[str, Any] = {}
        self._delays: dict[Any, Any] = {}
        self.target: int = self._options.min_replicas

    def decide(self, now_s: float, arriving_tokens_per_s: float, waiting_tokens: float, running: int) -> int:
        """How many replicas there should be; call it each `TICK_S`."""
        self._reports.append(_Report(now_s, arriving_tokens_per_s, waiting_tokens))
        context = _Context(now_s, self._policy_state, self._metrics(now_s))
        wanted, self._policy_state = self._policy(context)
        scaled = _apply_scaling_factors(wanted, running, self._options)
        bounded = min(max(scaled, self._options.min_replicas), self._options.max_replicas)
        self.target, self._delays = _apply_delay_logic(bounded, self.target, self._options, self._delays, _now=now_s)
        return self.target

    def _metrics(self, now_s: float) -> dict[str, dict[str, float]]:
        interval_s, window_s = self._options.metrics_interval_s, self._options.look_back_period_s
        while self._reports[0].at_s < now_s - window_s - interval_s:
            self._reports.popleft()
        known = [report for report in self._reports if report.at_s <= now_s - interval_s] or [self._reports[0]]
        return {
            ARRIVING: {"all": sum(report.arriving for report in known) / len(known)},
            WAITING: {"all": sum(report.waiting for report in known) / len(known)},
            SPEED: {"each": self._tokens_per_s},
            START: {"each": self._start_s},
        }
