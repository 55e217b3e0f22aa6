"""The whole answer to a question of capacity, ready to be shown: fleet, ingresses, controller, lost region, cost."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from rerank_service.config import AutoscalingConfig
from rerank_service.tools.planning.fleet import Demand, FleetPlan, smallest
from rerank_service.tools.planning.limits import Cadence, Limits, limits_of
from rerank_service.tools.planning.region import Loss, RegionLoss, lose_region, replicas_kept

__all__ = ["CapacityReport", "RegionReport", "cost_per_million_passages", "plan_capacity"]


@dataclass(frozen=True)
class RegionReport:
    """Of each region, all alike."""

    plan: FleetPlan
    """For its share of the load."""
    plan_after_loss: FleetPlan
    """For its share once one region is gone: with so many from the start nothing happens."""
    assumed: Loss
    loss: RegionLoss


@dataclass(frozen=True)
class CapacityReport:
    """To `Demand`."""

    demand: Demand
    plan: FleetPlan
    kept_replicas: int
    """That the autoscaler keeps at its `target_utilisation`, if those are more than the plan's."""
    limits: Limits
    region: RegionReport | None
    cost_per_million_passages: float | None
    """In the currency of the price; null without one."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        shown = asdict(self)
        shown["demand"]["mix"]["passages"] = {str(size): weight for size, weight in self.demand.mix.passages.items()}
        shown["plan"]["measured"] = self.plan.measured._asdict()
        if self.region is not None:
            for name in ("plan", "plan_after_loss"):
                shown["region"][name]["measured"] = getattr(self.region, name).measured._asdict()
        return shown


def plan_capacity(
    demand: Demand,
    *,
    loss: Loss | None = None,
    cadence: Cadence | None = None,
    price_per_gpu_hour: float | None = None,
    on_try: Callable[[int], None] = lambda replicas: None,
) -> CapacityReport:
    """Raises `CannotMeet`. With a `loss` the load is spread over its regions; without one there is one region."""
    plan = smallest(demand, on_try)
    price = price_per_gpu_hour
    return CapacityReport(
        demand=demand,
        plan=plan,
        kept_replicas=replicas_kept(demand, plan.replicas, AutoscalingConfig().target_utilisation),
        limits=limits_of(demand, plan.replicas, cadence),
        region=_region(demand, loss, on_try) if loss else None,
        cost_per_million_passages=None if price is None else cost_per_million_passages(demand, plan.replicas, price),
    )


def cost_per_million_passages(demand: Demand, replicas: int, price_per_gpu_hour: float) -> float:
    """What the devices cost while the load is as asked for, for each million passages ranked."""
    passages_per_hour = demand.rps * demand.mix.mean_passages * 3600
    return replicas * price_per_gpu_hour / passages_per_hour * 1e6


def _region(demand: Demand, loss: Loss, on_try: Callable[[int], None]) -> RegionReport:
    share = replace(demand, rps=demand.rps / loss.regions)
    plan = smallest(share, on_try)
    after = smallest(replace(demand, rps=demand.rps / (loss.regions - 1)), on_try)
    return RegionReport(plan, after, loss, lose_region(share, plan.replicas, loss))
