"""How many replicas a model needs, from tokens: those that arrive, those that wait, those a replica scores a second.

Serve counts calls, of which one may be a passage and another sixteen thousand tokens. Its controller asks `TokenPolicy`
several times a second, and puts its own bounds and `upscale_delay_s` around the answer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.serve.config import AutoscalingContext

__all__ = ["ARRIVING", "SPEED", "START", "WAITING", "ModelLoad", "TokenPolicy"]

ARRIVING = "arriving_tokens_per_s"
WAITING = "waiting_tokens"
SPEED = "tokens_per_s"
START = "start_s"
"""Keys of what replicas report (`Replica.record_autoscaling_stats`)."""

_RECENT = "wanted_by_second"
"""Key of the policy's state: the most that was wanted in each of the last seconds."""


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """Of all replicas of one model together, over the look-back period."""

    arriving_tokens_per_s: float
    waiting_tokens: float
    """Handed to a replica and not scored yet."""
    tokens_per_s: float | None
    """What one replica scores while it has work; null until one has scored something."""
    start_s: float
    """What a replica takes to start."""
    calls: float
    """In flight, the only figure there is before the first is scored."""


class TokenPolicy:
    """Enough replicas for what arrives, and to work off what waits soon after new ones can be there.

    Fewer only once fewer would have done for `steady_s`, as in Kubernetes: the most wanted in that time counts.
    """

    def __init__(self, target_utilisation: float, max_wait_s: float, steady_s: float, calls_per_replica: float) -> None:
        """`calls_per_replica` is aimed at while the speed of a replica is not known."""
        self._target_utilisation = target_utilisation
        self._max_wait_s = max_wait_s
        self._steady_s = steady_s
        self._calls_per_replica = calls_per_replica

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Serve's signature: how many replicas are wanted, and what to remember."""
        load = _load_of(context.aggregated_metrics or {}, context.total_num_requests)
        now = math.floor(context.current_time or 0)
        before = context.policy_state.get(_RECENT, {})
        recent = {second: wanted for second, wanted in before.items() if now - self._steady_s < second <= now}
        recent[now] = max(recent.get(now, 0), self.wanted_replicas(load))
        return max(recent.values()), {_RECENT: recent}

    def wanted_replicas(self, load: ModelLoad) -> int:
        """For this load alone."""
        if not load.tokens_per_s:
            return math.ceil(load.calls / self._calls_per_replica)
        arriving = load.arriving_tokens_per_s / load.tokens_per_s
        backlog = load.waiting_tokens / (load.tokens_per_s * (load.start_s + self._max_wait_s))
        return math.ceil(max(arriving / self._target_utilisation, arriving + backlog))


def _load_of(reported: Mapping[str, Mapping[Any, float]], calls: float) -> ModelLoad:
    speeds = [speed for speed in reported.get(SPEED, {}).values() if speed > 0]
    return ModelLoad(
        arriving_tokens_per_s=sum(reported.get(ARRIVING, {}).values()),
        waiting_tokens=sum(reported.get(WAITING, {}).values()),
        tokens_per_s=sum(speeds) / len(speeds) if speeds else None,
        start_s=max(reported.get(START, {}).values(), default=0.0),
        calls=calls,
    )
