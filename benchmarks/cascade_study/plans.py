"""Simulated fleets: NVIDIA's 1B and 4B as a cascade, and the 4B alone, at the loads of `docs/capacity.md`."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from rerank_service.tools.planning.cascade import Stage, plan_cascade
from rerank_service.tools.planning.fleet import Demand
from rerank_service.tools.planning.speed import PlannedModel, flops_per_token, speed_of
from rerank_service.tools.planning.workload import Mix
from rerank_service.tools.random_checkpoints.shapes import Architecture, shape_of

__all__ = ["computed_costs", "simulated_plans"]

_KEPT = (0.05, 0.1, 0.2, 0.5)


class Load(NamedTuple):
    """Requests of equal size, their target, and the passages that the 1B keeps."""

    rps: float
    passages: int
    tokens: int
    p99_s: float
    keep: int


_LOADS = (Load(200.0, 100, 256, 0.5, 10), Load(20.0, 512, 256, 2.0, 50))


def simulated_plans(progress: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The plan of each load, as `rerank-service plan --cascade 1b:KEEP,4b --json` prints it, with the load."""
    for load in _LOADS:
        mix = Mix({load.passages: 1.0}, load.tokens)
        small, large = (speed_of(mix, model=model) for model in (PlannedModel.LLAMA_1B, PlannedModel.MISTRAL_4B))
        demand = Demand(mix, load.rps, load.p99_s, small)
        plan = plan_cascade(demand, [Stage("1b", small, load.keep), Stage("4b", large)])
        progress(f"{load}: {[stage.replicas for stage in plan.stages]}, alone {plan.alone and plan.alone.replicas}")
        yield {"load": load._asdict(), "plan": asdict(plan)}


def computed_costs(tokens: int = 256) -> dict[str, Any]:
    """Floating-point operations of a pair, and the cascade's as a share of the 4B's, by the share it keeps."""
    shapes = {"1b": shape_of(Architecture.LLAMA_BIDIREC, "1b"), "4b": shape_of(Architecture.MISTRAL, "4b")}
    flops = {name: tokens * flops_per_token(shape, tokens) for name, shape in shapes.items()}
    shares = {str(keep): flops["1b"] / flops["4b"] + keep for keep in _KEPT}
    return {"tokens": tokens, "flops_per_pair": flops, "share_of_the_4b": shares}
