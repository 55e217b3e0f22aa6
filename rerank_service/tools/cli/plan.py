"""`rerank-service plan`: estimates how many GPUs a load needs, by simulation. This file has the options and tables;
`tools.planning` simulates."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING

import typer
from rich.table import Column, Table

from rerank_service.tools.bench.workload import Lengths
from rerank_service.tools.cli.console import fail, stderr, stdout
from rerank_service.tools.planning.speed import ASSUMED_MFU, PlannedModel, speed_of
from rerank_service.tools.planning.workload import Mix

if TYPE_CHECKING:
    from rerank_service.tools.planning.capacity import CapacityReport
    from rerank_service.tools.planning.fleet import Demand, FleetPlan
    from rerank_service.tools.planning.region import Loss

__all__ = ["plan"]


class Front(StrEnum):
    """The proxy in front of the ingresses."""

    HAPROXY = "haproxy"
    SERVE_PROXY = "serve-proxy"


def plan(
    rps: float = typer.Option(..., min=0.001, help="Requests per second."),
    passages: str = typer.Option(..., help="Passages per request, or a mix SIZE:WEIGHT, such as 10:4,100:1."),
    tokens: str = typer.Option(..., help=f"Tokens per pair, query included, or one of {', '.join(Lengths)}."),
    p99_ms: float = typer.Option(..., min=1, help="Target for the 99th percentile of latency."),
    tokens_per_s: float | None = typer.Option(None, min=1, help="Speed of one replica, measured by benchmarks/gpu.py."),
    model: PlannedModel = typer.Option(PlannedModel.LLAMA_1B, help="Model to estimate if there is no --tokens-per-s."),
    gpu: str = typer.Option("h100", help="GPU of each replica: h100, h200, a100, l40s, a10, l4 ..."),
    mfu: float = typer.Option(ASSUMED_MFU, min=0.01, max=1, help="Assumed share of the GPU's peak throughput."),
    batch_overhead_ms: float | None = typer.Option(None, min=0, help="Fixed time per batch, whatever its size."),
    burstiness: float = typer.Option(1.0, min=1, help="Squared CV of the gaps between requests; 1: Poisson."),
    timeout_s: float = typer.Option(60.0, min=0.1, help="Request timeout of the service."),
    front: Front = typer.Option(Front.HAPROXY, help="Proxy in front of the service."),
    price_per_gpu_hour: float | None = typer.Option(None, min=0, help="Price in any currency; adds the cost."),
    regions: int = typer.Option(1, min=1, help="Regions that share the load; with 2 or more, one region fails."),
    start_s: float = typer.Option(60.0, min=0, help="Time that a new replica takes to start after a region fails."),
    failover_s: float = typer.Option(10.0, min=0, help="Time until clients of the failed region reach another region."),
    seed: int = typer.Option(0, help="Seed of the simulation."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Estimate how many GPUs a load needs, by simulation.

    Also shows the limits of the fleet, its cost, and the effect of losing a region.
    """
    from rerank_service.tools.planning.costs import HAPROXY, SERVE_PROXY  # imports Serve, which takes seconds
    from rerank_service.tools.planning.fleet import Demand
    from rerank_service.tools.planning.region import Loss

    mix = _mix(passages, tokens)
    batch_s = None if batch_overhead_ms is None else batch_overhead_ms / 1000
    try:
        speed = speed_of(
            mix, tokens_per_s=tokens_per_s, model=model, gpu=gpu.lower(), mfu=mfu, batch_overhead_s=batch_s
        )
    except ValueError as error:
        raise fail(str(error)) from None
    costs = HAPROXY if front is Front.HAPROXY else SERVE_PROXY
    demand = Demand(mix, rps, p99_ms / 1000, speed, burstiness, costs, timeout_s, seed)
    loss = Loss(regions, start_s, failover_s) if regions > 1 else None
    found = _search(demand, loss, price_per_gpu_hour)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    stdout.print(_table(found, passages, tokens))
    stdout.print(*_notes(found), sep="\n", highlight=False, soft_wrap=True)


def _search(demand: "Demand", loss: "Loss | None", price_per_gpu_hour: float | None) -> "CapacityReport":
    from rerank_service.tools.planning.capacity import plan_capacity
    from rerank_service.tools.planning.fleet import CannotMeet

    try:
        with stderr.status("simulating") as status:

            def show(replicas: int) -> None:
                status.update(f"simulating {replicas:,} replicas")

            return plan_capacity(demand, loss=loss, price_per_gpu_hour=price_per_gpu_hour, on_try=show)
    except CannotMeet as error:
        raise fail(
            f"no number of replicas keeps p99 within {_ms(demand.p99_s)}; the best p99 is {_ms(error.p99_s)}. "
            "Use a faster replica (--tokens-per-s, --gpu), smaller requests or a higher target."
        ) from None


def _mix(passages: str, tokens: str) -> Mix:
    try:
        parts = [part.split(":") for part in passages.split(",")]
        sizes = {int(part[0]): float(part[1]) if len(part) > 1 else 1.0 for part in parts}
    except (ValueError, IndexError):
        raise fail(f"--passages {passages!r} is neither a number nor a mix such as 10:4,100:1") from None
    try:
        return Mix(sizes, Lengths(tokens) if tokens in set(Lengths) else int(tokens))
    except ValueError:
        raise fail(
            f"--passages {passages!r} --tokens {tokens!r}: sizes, weights and tokens must be above 0, and tokens must "
            f"be a number or one of {', '.join(Lengths)}"
        ) from None


def _table(found: "CapacityReport", passages: str, tokens: str) -> Table:
    demand, plan, measured, limits = found.demand, found.plan, found.plan.measured, found.limits
    title = f"{demand.rps:g} requests/s of {passages} passages of {tokens} tokens, p99 within {_ms(demand.p99_s)}"
    table = Table(
        Column(no_wrap=True),
        Column(style="bold", no_wrap=True, justify="right"),
        Column(style="dim"),
        title=title,
        title_justify="left",
        box=None,
        show_header=False,
    )
    spread = f"95%: {_ms(measured.p99_low_s)} to {_ms(measured.p99_high_s)}; p50 {_ms(measured.p50_s)}"
    table.add_row("replicas", f"{plan.replicas:,}", _reason_for_replicas(plan))
    table.add_row("p99", _ms(measured.p99_s), spread)
    table.add_row("devices busy", f"{measured.utilisation:.2f}", _kept_by_the_autoscaler(found))
    table.add_row("one replica", f"{demand.speed.tokens_per_s:,.0f}", f"tokens/s; {demand.speed.origin}")
    table.add_row(
        "ingresses",
        f"{plan.ingresses:,}",
        f"{limits.ingress_cpus:.1f} CPUs; other processes use {limits.other_cpus:.1f}",
    )
    table.add_row(
        "controller",
        f"{limits.controller_cpus:.2f}",
        f"of one core; {limits.controller_messages_per_s:,.0f} messages/s; supports {limits.most_replicas:,} replicas",
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
    return f"one replica fewer misses the target; {plan.fewest_replicas:,} would keep up with the load"


def _kept_by_the_autoscaler(found: "CapacityReport") -> str:
    kept = f"the autoscaler would keep {found.kept_replicas:,}"
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
            "[yellow]The speed is an assumption, not a measurement.[/] Measure yours with `python benchmarks/gpu.py` "
            "and pass it as --tokens-per-s."
        )
    yield "This is a simulation; docs/capacity.md lists its limits."


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"
