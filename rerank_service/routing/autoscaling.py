"""Computes the number of replicas a model needs from its offered tokens, its backlog and the throughput of one replica.

Serve's own policies count calls, but one call may be a short passage and another sixteen thousand tokens. Serve's
controller calls `TokenPolicy` ten times a second and limits the answer to `min_replicas` and `max_replicas`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ray.serve.config import AutoscalingContext

from rerank_service.messages import OFFERED, SPEED, START, WAITING

__all__ = ["ModelLoad", "TokenPolicy"]

_MAXIMA = "wanted_by_second"
"""Key of the policy's state: the highest number of replicas wanted in each recent second."""
_ARRIVALS = "arrivals"
"""Key of the policy's state: offered tokens over time."""
_RECENT = "wanted_of_late"
"""Key of the policy's state: the number of replicas wanted at each call within the last `upscale_delay_s`."""

_SLOTS = 5
"""Slots in the look-back period; a replica records its counters about once per slot."""
_UNEVEN = 2.0
"""The slots hold a burst if the fullest slot exceeds the median slot by more than this factor. After a step in the
load, these two slots are about equal."""
_MEAN_S = 30.0
"""Window of the mean rate. A longer window follows a load of few, large requests too slowly; a shorter window mistakes
a single large request for a lasting load. A request that the replicas can score in this time at the target utilisation
adds no replica."""


class _Point(Protocol):
    """A value at a time: Serve's `TimeStampedValue`."""

    timestamp: float
    value: float


_Series = Mapping[Any, Sequence[_Point]]
"""Points by replica, oldest first."""


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """The load of one model, over all its replicas."""

    steady_tokens_per_s: float
    """Offered rate in most slots of the look-back period. It follows a step in the load within seconds and ignores a
    burst."""
    mean_tokens_per_s: float
    """Offered rate over `_MEAN_S`. It also measures a load of few, large requests."""
    waiting_tokens: float
    """Backlog: tokens that replicas have accepted and not scored yet."""
    tokens_per_s: float | None
    """Throughput of one replica while it has work; null until a replica has scored something."""
    start_s: float
    """Time in seconds that a replica takes to start."""
    calls: float
    """Calls in flight, used while the throughput is unknown."""


class _Arrivals(NamedTuple):
    """Offered tokens over time."""

    last: Mapping[Any, _Point]
    """The newest point counted, by replica."""
    by_slot: Mapping[int, float]
    """Tokens by slot, over all replicas."""


class TokenPolicy:
    """Asks for enough replicas to score the offered tokens, and to clear the backlog soon after new replicas are up.

    The policy scales up when a higher number of replicas has been wanted for `upscale_delay_s`, so that a single burst
    adds no replicas. It scales down when a lower number has sufficed for `steady_s`: as in Kubernetes, the highest
    number wanted in that time applies. The policy applies the delays itself, because Serve would apply them to that
    highest number, which a single peak raises.

    Serve empties the policy's state when Serve's controller restarts and when the deployment changes. Without state,
    the policy starts from the current number of replicas.
    """

    def __init__(
        self,
        target_utilisation: float,
        max_wait_s: float,
        steady_s: float,
        calls_per_replica: float,
        look_back_s: float = 3.0,
        report_interval_s: float = 1.0,
        upscale_delay_s: float = 1.0,
        initial_replicas: int | None = None,
    ) -> None:
        """`calls_per_replica` is the target number of calls in flight while the throughput of a replica is unknown."""
        self._target_utilisation = target_utilisation
        self._max_wait_s = max_wait_s
        self._steady_s = max(steady_s, look_back_s + report_interval_s)  # the load is known only after this time
        self._upscale_delay_s = upscale_delay_s
        self._calls_per_replica = calls_per_replica
        self._slot_s = look_back_s / _SLOTS
        self._report_interval_s = report_interval_s
        self._mean_s = max(_MEAN_S, look_back_s)
        self._initial_replicas = initial_replicas

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Returns the wanted number of replicas and the state for the next call. Serve prescribes this signature."""
        reported: Mapping[str, _Series] = context.raw_metrics or {}
        now_s, state = context.current_time or 0.0, context.policy_state
        arrivals = self._count(state.get(_ARRIVALS, _Arrivals({}, {})), reported.get(OFFERED, {}), now_s)
        load = _load_of(reported, *self._rates(arrivals, now_s), context.total_num_requests)
        wanted = self.wanted_replicas(load)
        recent = [one for one in state.get(_RECENT, [(now_s, 0)]) if one[0] > now_s - self._upscale_delay_s]
        recent.append((now_s, wanted))
        sustained = min(replicas for _, replicas in recent)  # wanted throughout `upscale_delay_s`
        new_state: dict[str, Any] = {_ARRIVALS: arrivals, _RECENT: recent}
        second, maxima = math.floor(now_s), state.get(_MAXIMA)
        if maxima is None:
            present = self._replicas_present(context)
            num_reporting = len(reported.get(OFFERED, {}))
            if present and (not num_reporting or num_reporting < context.current_num_replicas):
                return max(present, sustained), new_state  # too few reports to justify fewer replicas
            maxima = {second: present}
        maxima = {at: most for at, most in maxima.items() if second - self._steady_s < at <= second}
        most = max(maxima.values(), default=0)
        maxima[second] = wanted if sustained > most else max(maxima.get(second, 0), sustained)
        return max(maxima.values()), new_state | {_MAXIMA: maxima}

    def wanted_replicas(self, load: ModelLoad) -> int:
        """Number of replicas that this load needs, regardless of earlier calls.

        The backlog is added only to the steady rate: a burst is part of the mean and of the backlog, and would count
        twice.
        """
        if not load.tokens_per_s:
            return math.ceil(load.calls / self._calls_per_replica)
        steady, mean = load.steady_tokens_per_s / load.tokens_per_s, load.mean_tokens_per_s / load.tokens_per_s
        backlog = load.waiting_tokens / (load.tokens_per_s * (load.start_s + self._max_wait_s))
        return math.ceil(max(max(steady, mean) / self._target_utilisation, steady + backlog))

    def _replicas_present(self, context: AutoscalingContext) -> int:
        """Number of replicas from which a policy without state starts.

        After a restart of the controller, the target is the last saved target, and a replica counts as running only
        once the controller has found it again. A deployment counts as new if it has no replicas and its target is the
        minimum. A new deployment starts with `initial_replicas`. Serve's own option of that name would also shrink a
        running deployment when it is redeployed.
        """
        target, running = context.target_num_replicas, context.current_num_replicas
        if running == 0 and target <= context.capacity_adjusted_min_replicas:
            return max(target, self._initial_replicas or 0)
        return max(target, running)

    def _count(self, before: _Arrivals, offered: _Series, now_s: float) -> _Arrivals:
        """Adds the newly reported points."""
        oldest = math.floor((now_s - self._mean_s - self._report_interval_s) / self._slot_s)
        by_slot = {slot: tokens for slot, tokens in before.by_slot.items() if slot >= oldest}
        last: dict[Any, _Point] = {}
        for replica, points in offered.items():
            if not points:
                continue
            seen = before.last.get(replica, points[0])
            if points[-1].timestamp > seen.timestamp:
                for point in points:
                    if point.timestamp > seen.timestamp:
                        slot = math.floor(point.timestamp / self._slot_s)
                        by_slot[slot] = by_slot.get(slot, 0.0) + point.value - seen.value
                        seen = point
            last[replica] = seen
        return _Arrivals(last, by_slot)

    def _rates(self, arrivals: _Arrivals, now_s: float) -> tuple[float, float]:
        """Returns `steady_tokens_per_s` and `mean_tokens_per_s`.

        The steady rate is that of the median slot in the look-back period, so it follows a step after three of five
        slots. A burst fills two slots, because replicas record at different moments. If a record is late, the burst
        reaches a third slot, and this slot is the median. Therefore, if the fullest slot exceeds the median by more
        than the factor `_UNEVEN`, the slot below the median counts instead.
        """
        # the newest slot that all replicas have reported
        complete = math.floor((now_s - self._report_interval_s) / self._slot_s)
        _, low, median, _, high = sorted(arrivals.by_slot.get(complete - age, 0.0) for age in range(1, _SLOTS + 1))
        steady = median if high <= _UNEVEN * median else low
        return steady / self._slot_s, sum(arrivals.by_slot.values()) / self._mean_s


def _load_of(reported: Mapping[str, _Series], steady: float, mean: float, calls: float) -> ModelLoad:
    def latest(name: str) -> list[float]:
        return [points[-1].value for points in reported.get(name, {}).values() if points]

    speeds = [speed for speed in latest(SPEED) if speed > 0]
    return ModelLoad(
        steady_tokens_per_s=steady,
        mean_tokens_per_s=mean,
        waiting_tokens=sum(latest(WAITING)),
        tokens_per_s=sum(speeds) / len(speeds) if speeds else None,
        start_s=max(latest(START), default=0.0),
        calls=calls,
    )
