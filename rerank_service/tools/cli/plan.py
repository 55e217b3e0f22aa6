"""`rerank-service plan`: estimates how many GPUs a load needs, by simulation. This file has the options and tables;
`tools.planning` simulates."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.status import Status
from rich.table import Table

from rerank_service.config import LimitsConfig
from rerank_service.tools.bench.workload import Lengths
from rerank_service.tools.cli.console import fail, say, stderr, stdout
from rerank_service.tools.cli.plan_cascade import (
    cascade_answer,
    cascade_notes,
    cascade_table,
    figures_table,
    in_ms,
    read_stages,
    several,
)
from rerank_service.tools.planning.speed import ASSUMED_MFU, PlannedModel, ReplicaSpeed, speed_of
from rerank_service.tools.planning.workload import MAX_TOKENS, Mix

if TYPE_CHECKING:
    from rerank_service.tools.planning.capacity import CapacityReport
    from rerank_service.tools.planning.cascade import CascadePlan, Stage
    from rerank_service.tools.planning.fleet import Demand, FleetPlan

__all__ = ["plan", "plan_answer", "plan_table"]


class Front(StrEnum):
    """The proxy in front of the ingresses."""

    HAPROXY = "haproxy"
    SERVE_PROXY = "serve-proxy"


Passages = Annotated[
    str,
    typer.Option(
        help="Passages per request, or a mix such as 10:4,100:1: four requests of 10 passages for each request of 100."
    ),
]
Tokens = Annotated[
    str, typer.Option(help=f"Tokens of query and passage together, or a kind of text: {', '.join(Lengths)}.")
]
P99 = Annotated[float, typer.Option(min=1, max=3_600_000, help="Time in which 99% of the requests must be answered.")]
MeasuredSpeed = Annotated[
    float | None,
    typer.Option(min=1, max=1e9, help="Measured speed of one GPU (benchmarks/gpu.py); by default an estimate."),
]
EstimatedModel = Annotated[
    PlannedModel | None,
    typer.Option(
        help="Model whose speed is estimated: NVIDIA's 1B or 4B, or the embedded one (CPU).",
        show_default=PlannedModel.LLAMA_1B.value,
    ),
]
Cascade = Annotated[
    str | None,
    typer.Option(
        help="Stages of a cascade, and how many passages or which share each keeps: 1b:50,4b, 1b:0.1,4b or, with "
        "measured speeds, 1b=200000:50,4b=56000.",
        metavar="MODEL:KEEP,...,MODEL",
    ),
]
Mfu = Annotated[
    float, typer.Option(min=0.01, max=1, help="Share of the GPU's peak throughput that the estimate assumes.")
]
Overhead = Annotated[
    float | None, typer.Option(min=0, max=60_000, help="Fixed time per batch, added to the time that its tokens take.")
]
Burstiness = Annotated[
    float,
    typer.Option(
        min=1,
        max=1_000,
        help="1: requests arrive at random (Poisson); above 1: in bursts. Squared CV of the time between requests.",
    ),
]
Price = Annotated[
    float | None, typer.Option(min=0, max=1e6, help="Price of a GPU hour in any currency, to show the cost.")
]
Regions = Annotated[
    int,
    typer.Option(
        min=1, max=100, help="Regions that share the load; with 2 or more, the simulation also lets one region fail."
    ),
]
FailoverTime = Annotated[
    float, typer.Option(min=0, max=3_600, help="Time until clients of the failed region reach another region.")
]
StartTime = Annotated[
    float, typer.Option(min=0, max=3_600, help="Time that a new replica takes to start after a region fails.")
]


def plan(
    rps: Annotated[float, typer.Option(min=0.001, max=1e6, help="Requests per second.")],
    passages: Passages,
    tokens: Tokens,
    p99_ms: P99,
    tokens_per_s: MeasuredSpeed = None,
    model: EstimatedModel = None,
    cascade: Cascade = None,
    gpu: Annotated[str, typer.Option(help="GPU for the estimate: h100, h200, a100, l40s, a10, l4 ...")] = "h100",
    mfu: Mfu = ASSUMED_MFU,
    batch_overhead_ms: Overhead = None,
    burstiness: Burstiness = 1.0,
    timeout_s: Annotated[float, typer.Option(min=0.1, max=86_400, help="Request timeout of the service.")] = 60.0,
    front: Annotated[Front, typer.Option(help="HTTP proxy in front of the service.")] = Front.HAPROXY,
    price_per_gpu_hour: Price = None,
    regions: Regions = 1,
    start_s: StartTime = 60.0,
    failover_s: FailoverTime = 10.0,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Estimate how many GPUs a load needs, by simulation.

    Also shows the limits of the fleet, its cost, and the effect of losing a region.
    """
    mix = _mix(passages, tokens)
    overhead_s = None if batch_overhead_ms is None else batch_overhead_ms / 1000
    only_one = {"--model": model, "--tokens-per-s": tokens_per_s, "--regions": regions if regions > 1 else None}
    stages = _stages(cascade, only_one, mix, gpu.lower(), mfu, overhead_s)
    speed = stages[0].speed if stages else _speed(mix, tokens_per_s, model, gpu.lower(), mfu, overhead_s)
    device = "replica" if any(one.is_measured for one in (speed, *(stage.speed for stage in stages))) else gpu.upper()
    with _status() as status:
        from rerank_service.tools.planning.costs import HAPROXY, SERVE_PROXY  # imports Serve, which takes seconds
        from rerank_service.tools.planning.fleet import Demand

        costs = HAPROXY if front is Front.HAPROXY else SERVE_PROXY
        demand = Demand(mix, rps, p99_ms / 1000, speed, burstiness, costs, timeout_s, seed)
        loss = (regions, start_s, failover_s) if regions > 1 else None
        found = _search(demand, stages, loss, price_per_gpu_hour, partial(_show_tried, status, device))
    _show(found, as_json, device, passages, tokens)


def _show(found: "CapacityReport | CascadePlan", as_json: bool, device: str, passages: str, tokens: str) -> None:
    """Prints one JSON object, or the answer, a table and notes."""
    from rerank_service.tools.planning.cascade import CascadePlan

    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    notes: Iterator[str]
    if isinstance(found, CascadePlan):
        answer, table = cascade_answer(found, device, _load(passages, tokens)), cascade_table(found)
        notes = cascade_notes(found)
    else:
        answer, table, notes = plan_answer(found, device, passages, tokens), plan_table(found), _notes(found)
    say(answer)
    stdout.print("", table, "", sep="\n")
    for note in notes:
        say(note)


def _show_tried(status: Status, device: str, tried: int) -> None:
    status.update(f"simulating {several(tried, device)}")


def _stages(
    cascade: str | None, only_one: Mapping[str, object], mix: Mix, gpu: str, mfu: float, overhead_s: float | None
) -> "list[Stage]":
    """Stages of a cascade; none if a single model is planned. `only_one` has the options for a single model."""
    if cascade is None:
        return []
    if given := [name for name, value in only_one.items() if value is not None]:
        raise fail(f"--cascade cannot be combined with {' or '.join(given)}")
    return read_stages(cascade, mix, gpu, mfu, overhead_s)


def _status() -> Status:
    """A spinner on a terminal; elsewhere, prints one line."""
    if not stderr.is_terminal:
        stderr.print("simulating the load ...")
    return stderr.status("preparing the simulation")


def _speed(
    mix: Mix, tokens_per_s: float | None, model: PlannedModel | None, gpu: str, mfu: float, overhead_s: float | None
) -> ReplicaSpeed:
    planned = model or PlannedModel.LLAMA_1B
    try:
        return speed_of(mix, tokens_per_s=tokens_per_s, model=planned, gpu=gpu, mfu=mfu, batch_overhead_s=overhead_s)
    except ValueError as error:
        raise fail(str(error)) from None


def _search(
    demand: "Demand",
    stages: "Sequence[Stage]",
    loss: tuple[int, float, float] | None,
    price_per_gpu_hour: float | None,
    on_try: Callable[[int], None],
) -> "CapacityReport | CascadePlan":
    from rerank_service.tools.planning.capacity import plan_capacity
    from rerank_service.tools.planning.cascade import plan_cascade
    from rerank_service.tools.planning.fleet import CannotMeet, TooLarge
    from rerank_service.tools.planning.region import Loss

    try:
        if stages:
            return plan_cascade(demand, stages, price_per_gpu_hour, on_try)
        return plan_capacity(demand, loss=loss and Loss(*loss), price_per_gpu_hour=price_per_gpu_hour, on_try=on_try)
    except CannotMeet as error:
        speed = "MODEL=TOKENS_PER_S in --cascade" if stages else "--tokens-per-s"
        raise fail(
            f"no number of replicas keeps p99 within {in_ms(demand.p99_s)}; the best p99 is {in_ms(error.p99_s)}. "
            f"Use a faster replica ({speed}, --gpu), smaller requests or a higher target."
        ) from None
    except TooLarge as error:
        raise fail(
            f"simulating at least {error.replicas:,} replicas would take hours. Plan a part of the load, such as --rps "
            f"{error.rps:.10g}, and multiply: so large a service is several clusters (docs/capacity.md, Cells)"
        ) from None


def _mix(passages: str, tokens: str) -> Mix:
    try:
        parts = [part.split(":") for part in passages.split(",")]
        sizes = {int(part[0]): float(part[1]) if len(part) > 1 else 1.0 for part in parts}
    except (ValueError, IndexError):
        raise fail(f"--passages {passages!r} is neither a number nor a mix such as 10:4,100:1") from None
    most = LimitsConfig().max_passages
    if sizes and max(sizes) > most:
        raise fail(
            f"--passages {passages!r}: a request has at most {most} passages (limits.max_passages); the Python client "
            f"sends more as several requests of at most {most}"
        )
    try:
        return Mix(sizes, Lengths(tokens) if tokens in set(Lengths) else int(tokens))
    except ValueError:
        raise fail(
            f"--passages {passages!r} --tokens {tokens!r}: sizes, weights and tokens must be above 0 (tokens at "
            f"most {MAX_TOKENS:,}), and tokens must be a number or one of {', '.join(Lengths)}"
        ) from None


def plan_answer(found: "CapacityReport", device: str, passages: str, tokens: str) -> str:
    """The answer in one or two sentences."""
    demand, plan = found.demand, found.plan
    answer = (
        f"You need {several(plan.replicas, device)}: 99% of the requests are then answered within "
        f"{in_ms(plan.measured.p99_s)} (target: {in_ms(demand.p99_s)}), at {demand.rps:g} requests/s of "
        f"{_load(passages, tokens)}."
    )
    if found.region is None:
        return answer
    region = found.region
    return (
        f"{answer} With {region.assumed.regions} regions, {region.plan.replicas:,} in each are enough; "
        f"{region.plan_after_loss.replicas:,} in each meet the target even after one region fails."
    )


def _load(passages: str, tokens: str) -> str:
    size = f"{passages} passages" if passages.isdecimal() else f"passages in the mix {passages}"
    return f"{size} of {tokens} tokens" if tokens.isdecimal() else f"{size} with `{tokens}` lengths"


def plan_table(found: "CapacityReport") -> Table:
    """A table with one row per figure: its name, its value and what it means."""
    demand, plan, measured, limits = found.demand, found.plan, found.plan.measured, found.limits
    table = figures_table()
    spread = (
        f"{in_ms(measured.p99_low_s)} to {in_ms(measured.p99_high_s)} with 95% confidence; half of the requests take "
        f"at most {in_ms(measured.p50_s)}"
    )
    table.add_row("replicas", f"{plan.replicas:,}", _reason_for_replicas(plan))
    table.add_row("p99 latency", in_ms(measured.p99_s), spread)
    table.add_row("busy", f"{measured.utilisation:.0%}", _kept_by_the_autoscaler(found))
    table.add_row("one replica", f"{demand.speed.tokens_per_s:,.0f}", f"tokens/s; {demand.speed.origin}")
    table.add_row(
        "ingresses",
        f"{plan.ingresses:,}",
        f"processes that receive requests; they use {limits.ingress_cpus:.1f} CPUs, other processes "
        f"{limits.other_cpus:.1f} CPUs",
    )
    table.add_row(
        "controller",
        f"{limits.controller_cpus:.2f}",
        f"cores for Ray Serve's controller; one core is enough for {limits.most_replicas:,} replicas",
    )
    if found.cells is not None:
        cells = found.cells
        table.add_row(
            "clusters",
            f"{cells.count:,}",
            f"of {cells.replicas:,} replicas each, behind one gateway (docs/capacity.md); if one is lost, the others "
            "carry the load",
        )
    if found.cost_per_million_passages is not None:
        table.add_row("cost", f"{found.cost_per_million_passages:.2f}", "per million passages, for replicas only")
    if found.region is not None:
        _add_region(table, found)
    return table


def _reason_for_replicas(plan: "FleetPlan") -> str:
    if plan.replicas == 1:
        return "a single replica meets the target"
    if plan.replicas == plan.fewest_replicas:
        return "one replica fewer cannot keep up with the load"
    return f"one replica fewer misses the target; {plan.fewest_replicas:,} are enough to keep up with the load"


def _kept_by_the_autoscaler(found: "CapacityReport") -> str:
    kept = f"at this load, the autoscaler keeps {found.kept_replicas:,}"
    if found.kept_replicas == found.plan.replicas:
        return kept
    from rerank_service.config import AutoscalingConfig

    return f"{kept}, each {AutoscalingConfig().target_utilisation:.0%} busy (target_utilisation)"


def _add_region(table: Table, found: "CapacityReport") -> None:
    region = found.region
    assert region is not None  # noqa: S101 - checked by the caller
    loss = region.loss
    recovered = "not within the simulated time" if loss.recovered_after_s is None else f"{loss.recovered_after_s:.0f} s"
    table.add_row(
        "each region",
        f"{region.plan.replicas:,}",
        f"replicas; {region.plan_after_loss.replicas:,} per region meet the target even after one region fails",
    )
    table.add_row(
        "after a loss",
        recovered,
        f"until p99 is within the target again; {loss.replicas_before:,} to {max(loss.replicas):,} replicas, "
        f"each of which starts in {region.assumed.start_s:g} s (--start-s)",
    )
    table.add_row(
        "", f"{loss.worst_p99_s:.1f} s", f"worst p99 meanwhile; {loss.num_refused:,} requests refused in each region"
    )
    table.add_row("", f"{loss.unreachable:,.0f}", "requests fail before clients reach another region")


def _notes(found: "CapacityReport") -> Iterator[str]:
    if not found.demand.speed.is_measured:
        yield (
            "The speed is an assumption, not a measurement. Measure yours with `python benchmarks/gpu.py` and pass it "
            "as --tokens-per-s."
        )
    yield "This is a simulation; docs/capacity.md lists its limits."
