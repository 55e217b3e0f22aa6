"""How many replicas a model needs, from tokens: those offered, those still queued, those a replica scores a second.

Serve counts calls, of which one may be a passage and another sixteen thousand tokens. Its controller asks `TokenPolicy`
ten times a second, and puts its own bounds around the answer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ray.serve.config import AutoscalingContext

from rerank_service.messages import OFFERED, SPEED, START, WAITING

__all__ = ["ModelLoad", "TokenPolicy"]

_WANTED = "wanted_by_second"
"""Key of the policy's state: the most replicas wanted in each of the last seconds."""
_ARRIVALS = "arrivals"
_OF_LATE = "wanted_of_late"
"""Keys of the policy's state: offered tokens, and replicas wanted at each moment of the last `upscale_delay_s`."""

_SLOTS = 5
"""Parts of the look-back period; Serve has a replica record its counters about once in each."""
_UNEVEN = 2.0
"""Ratio of the fullest part to the median from which the parts hold a burst; a step's are alike."""
_MEAN_S = 30.0
"""Longer would follow a load of few, large requests too slowly; shorter would take one large request for such a load:
what the replicas can score in this time at the target utilisation adds none."""


class _Point(Protocol):
    """Serve's `TimeStampedValue`."""

    timestamp: float
    value: float


_Series = Mapping[Any, Sequence[_Point]]
"""By replica, oldest point first."""


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """Of all replicas of one model together."""

    steady_tokens_per_s: float
    """Offered in most parts of the look-back period: follows a step within seconds, and no single burst."""
    mean_tokens_per_s: float
    """Offered over `_MEAN_S`: right for a load of few, large requests too."""
    waiting_tokens: float
    """Handed to a replica and not scored yet."""
    tokens_per_s: float | None
    """What one replica scores while it has work; null until one has scored something."""
    start_s: float
    """What a replica takes to start."""
    calls: float
    """In flight, the only figure there is before the first is scored."""


class _Arrivals(NamedTuple):
    """Offered tokens over time."""

    last: Mapping[Any, _Point]
    """The newest point counted, by replica."""
    by_slot: Mapping[int, float]
    """Tokens by part of the look-back period, all replicas together."""


class TokenPolicy:
    """Enough replicas for the tokens offered, and to clear the backlog soon after new replicas are up.

    A single burst is not a load: see `ModelLoad`. More replicas only once more have been wanted for `upscale_delay_s`.
    (Serve's own delay would come after the policy's memory, which a moment's peak would fill.) Fewer only once fewer
    have sufficed for `steady_s`, as in Kubernetes: the most wanted in that time counts.

    Serve empties the policy's state whenever its controller restarts and whenever the deployment changes; a policy
    without memory starts from the replicas that there are.
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
        """`calls_per_replica` is the aim while the speed of a replica is not known."""
        self._target_utilisation = target_utilisation
        self._max_wait_s = max_wait_s
        self._steady_s = max(steady_s, look_back_s + report_interval_s)  # it takes that long to know the load
        self._upscale_delay_s = upscale_delay_s
        self._calls_per_replica = calls_per_replica
        self._slot_s = look_back_s / _SLOTS
        self._report_interval_s = report_interval_s
        self._mean_s = max(_MEAN_S, look_back_s)
        self._initial_replicas = initial_replicas

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Serve's signature: how many replicas are wanted, and what to remember."""
        reported: Mapping[str, _Series] = context.raw_metrics or {}
        now_s, state = context.current_time or 0.0, context.policy_state
        arrivals = self._count(state.get(_ARRIVALS, _Arrivals({}, {})), reported.get(OFFERED, {}), now_s)
        load = _load_of(reported, *self._rates(arrivals, now_s), context.total_num_requests)
        of_late = [one for one in state.get(_OF_LATE, [(now_s, 0)]) if one[0] > now_s - self._upscale_delay_s]
        of_late.append((now_s, self.wanted_replicas(load)))
        wanted, proven = of_late[-1][1], min(replicas for _, replicas in of_late)
        memory: dict[str, Any] = {_ARRIVALS: arrivals, _OF_LATE: of_late}
        remembered = state.get(_WANTED)
        if remembered is None:
            present = self._replicas_present(context)
            num_reporting = len(reported.get(OFFERED, {}))
            if present and (not num_reporting or num_reporting < context.current_num_replicas):
                return max(present, proven), memory  # nothing is known yet that could justify fewer
            remembered = {math.floor(now_s): present}
        second = math.floor(now_s)
        recent = {at: most for at, most in remembered.items() if second - self._steady_s < at <= second}
        most = max(recent.values(), default=0)
        recent[second] = wanted if proven > most else max(recent.get(second, 0), proven)
        return max(recent.values()), memory | {_WANTED: recent}

    def wanted_replicas(self, load: ModelLoad) -> int:
        """For this load alone. The mean is not added to the backlog: a burst would count in both."""
        if not load.tokens_per_s:
            return math.ceil(load.calls / self._calls_per_replica)
        steady, mean = load.steady_tokens_per_s / load.tokens_per_s, load.mean_tokens_per_s / load.tokens_per_s
        backlog = load.waiting_tokens / (load.tokens_per_s * (load.start_s + self._max_wait_s))
        return math.ceil(max(max(steady, mean) / self._target_utilisation, steady + backlog))

    def _replicas_present(self, context: AutoscalingContext) -> int:
        """Replicas that a policy without memory starts from.

        After a restart of the controller the target is the one last saved, and no replica counts as running until the
        controller has found it again. A deployment whose target is its minimum and that has no replica is taken for a
        new one: Serve's own `initial_replicas` would also shrink a running deployment whenever it is deployed again.
        """
        target, running = context.target_num_replicas, context.current_num_replicas
        if running == 0 and target <= context.capacity_adjusted_min_replicas:
            return max(target, self._initial_replicas or 0)
        return max(target, running)

    def _count(self, before: _Arrivals, offered: _Series, now_s: float) -> _Arrivals:
        """Adds the points that have been reported since."""
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
        """`steady_tokens_per_s` and `mean_tokens_per_s`.

        The steady rate is the median over the parts of the look-back period: it has followed a step after three of
        five. What arrives at once is in two of them, since replicas do not record at the same moments, and in three
        if a record is late: parts of such different size are no step, and the next lower one counts.
        """
        complete = math.floor((now_s - self._report_interval_s) / self._slot_s)  # every replica has reported until then
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
