"""A complete capacity plan: fleet, ingresses, controller, loss of a region, and cost."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from rerank_service.config import AutoscalingConfig
from rerank_service.tools.planning.cells import Cells, fewest_cells
from rerank_service.tools.planning.fleet import Demand, FleetPlan, smallest
from rerank_service.tools.planning.limits import Cadence, Limits, limits_of
from rerank_service.tools.planning.region import Loss, RegionLoss, lose_region, replicas_kept

__all__ = ["CapacityReport", "RegionReport", "cost_per_million_passages", "plan_capacity"]


@dataclass(frozen=True)
class RegionReport:
    """Plan of one region; all regions are identical."""

    plan: FleetPlan
    """Fleet for the region's share of the load."""
    plan_after_loss: FleetPlan
    """Fleet for the region's share after another region is lost. If this fleet is already running before the loss,
    clients do not notice it."""
    assumed: Loss
    loss: RegionLoss


@dataclass(frozen=True)
class CapacityReport:
    """A capacity plan for a `Demand`."""

    demand: Demand
    plan: FleetPlan
    kept_replicas: int
    """Replicas that the autoscaler keeps running for its `target_utilisation`, at least the planned number."""
    limits: Limits
    cells: Cells | None
    """Clusters for the kept replicas; null if one controller manages them all."""
    region: RegionReport | None
    cost_per_million_passages: float | None
    """Cost in the currency of the price; null if no price is given."""


def plan_capacity(
    demand: Demand,
    *,
    loss: Loss | None = None,
    cadence: Cadence | None = None,
    price_per_gpu_hour: float | None = None,
    on_try: Callable[[int], None] = lambda replicas: None,
) -> CapacityReport:
    """Plans a fleet. If `loss` is given, the load is spread over `loss.regions` regions. Raises `CannotMeet`."""
    plan = smallest(demand, on_try)
    price = price_per_gpu_hour
    kept = replicas_kept(demand, plan.replicas, AutoscalingConfig().target_utilisation)
    limits = limits_of(demand, plan.replicas, cadence)
    return CapacityReport(
        demand=demand,
        plan=plan,
        kept_replicas=kept,
        limits=limits,
        cells=fewest_cells(demand, kept, cadence) if kept > limits.most_replicas else None,
        region=_region(demand, loss, on_try) if loss else None,
        cost_per_million_passages=None if price is None else cost_per_million_passages(demand, plan.replicas, price),
    )


def cost_per_million_passages(demand: Demand, replicas: int, price_per_gpu_hour: float) -> float:
    """Cost of the devices per million ranked passages, at the given load."""
    return replicas * price_per_gpu_hour / demand.passages_per_hour * 1e6


def _region(demand: Demand, loss: Loss, on_try: Callable[[int], None]) -> RegionReport:
    share = replace(demand, rps=demand.rps / loss.regions)
    plan = smallest(share, on_try)
    after = smallest(replace(demand, rps=demand.rps / (loss.regions - 1)), on_try)
    return RegionReport(plan, after, loss, lose_region(share, plan.replicas, loss))
