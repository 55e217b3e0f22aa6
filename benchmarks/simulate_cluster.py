"""Validates the simulation behind `rerank-service plan`, and computes the figures of docs/capacity.md with it.

    python -m benchmarks.simulate_cluster validate [--json benchmarks/results/plan-validation.json]
    python -m benchmarks.simulate_cluster tables [--json benchmarks/results/plan-tables.json]
    python -m benchmarks.simulate_cluster limits [--json benchmarks/results/plan-limits.json]
    python -m benchmarks.simulate_cluster cells [--json benchmarks/results/plan-cells.json]

`validate` simulates the measurements of `python -m benchmarks.stack scaling` and `open-load` on the real stack: the
same requests at the same times, with the same number and speed of replicas. `python -m benchmarks.report` writes the
figures into the page.
"""

import itertools
import json
import math
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.provenance import provenance, save_record
from benchmarks.stack.offered import Answered, schedule
from benchmarks.stack.open_load import TOKENS_PER_S, schedule_of
from benchmarks.stack.scaling import questions, steady_tokens_per_s
from rerank_service.config import AutoscalingConfig
from rerank_service.tools.bench.workload import Lengths
from rerank_service.tools.planning.cells import cells_of, fewest_cells, fullest_cell
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.cluster import FinishedRequest, Fleet, SimulatedCluster, percentile, run
from rerank_service.tools.planning.costs import HAPROXY, SERVE_PROXY
from rerank_service.tools.planning.fleet import CannotMeet, Demand, measure, smallest
from rerank_service.tools.planning.limits import Cadence, limits_of
from rerank_service.tools.planning.region import Loss, lose_region
from rerank_service.tools.planning.speed import PlannedModel, ReplicaSpeed, speed_of
from rerank_service.tools.planning.workload import Arrival, Mix

app = typer.Typer(add_completion=False, help=__doc__)
Json = Annotated[Path | None, typer.Option("--json", help="File for the figures.")]
RESULTS = Path(__file__).parent / "results"

_STACK_SPEED = ReplicaSpeed(TOKENS_PER_S, shard_tokens=4_096, origin="simulated device")
_STACK_COSTS = replace(HAPROXY, tokenised_per_s=math.inf)
"""Costs without tokenising, because the simulated engine only counts bytes."""
OPEN_LOADS = ("stack-open-load.json", "stack-open-load-2.json", "stack-open-load-3.json")
"""Results of three runs."""
_WARM_UP_S, _MEASURED_S = 5.0, 25.0
"""Durations of the warm-up and of the measurement, as in `stack.scaling`."""

SAMPLE = Mix({100: 1.0}, 256)
MIXES = {
    "20 snippets (`short`)": Mix({20: 1.0}, Lengths.SHORT),
    "100 of 256 tokens": SAMPLE,
    "100 chunks (`chunks`)": Mix({100: 1.0}, Lengths.CHUNKS),
    "10 to 512 (`long-tail`)": Mix({10: 4.0, 50: 3.0, 100: 2.0, 512: 1.0}, Lengths.LONG_TAIL),
}
RATES = (10.0, 50.0, 200.0)
GPUS = ("h100", "l4")
P99_S = {"h100": 0.5, "l4": 2.0}
"""The target of the L4 is longer, since a single request of 100 x 256 tokens takes half a second on two L4 replicas."""
_CURVE = (28, 29, 30, 31, 32, 36, 42, 52, 64)
SIZES = (10, 100, 300, 1_000, 3_000)
CELLS_REPLICAS = 1_000
_CELLS = (4, 5, 6, 8, 10)
_CELL_TIMEOUT_S = 2.0
_GATEWAY_FAILOVER_S = 4.0
"""Time until the gateway sends nothing to a lost cell, with the checks in cluster/gateway."""
_HASHES = 100
"""Random hash functions for each distribution of tenants."""


@app.command()
def validate(json_path: Json = None) -> None:
    """Simulates the recorded runs of the real stack, and compares the figures."""
    throughput = {row["replicas"]: row for row in recorded("stack-scaling.json")["results"]}
    waits = [row for file in OPEN_LOADS for row in recorded(file)["results"]]
    rows = [compare(row["replicas"], throughput[row["replicas"]], row) for row in waits]
    _finish({"rows": rows, "router": _compare_router()}, json_path)


def _compare_router() -> dict[str, Any]:
    """Compares the simulation with the run that measured routers: four replicas behind Serve's own proxy."""
    measured = next(row for row in recorded("stack-router.json")["results"] if row["router"] == "fewest tokens")
    coming = schedule(questions(0), 0.7 * 4 * TOKENS_PER_S, 60.0, random.Random(0))  # noqa: S311 - as `stack.router`
    requests = [Arrival(at_s, question.lengths) for at_s, question in coming]
    costs = replace(SERVE_PROXY, tokenised_per_s=math.inf)
    took = [one.latency_s for one in run(Fleet(4, _STACK_SPEED, costs=costs), requests)]
    return {"replicas": 4, "requests": len(took)} | {
        name: _pair(measured[name], percentile(took, share))
        for name, share in (("p50_s", 0.5), ("p95_s", 0.95), ("p99_s", 0.99))
    }


def _pair(measured: float, simulated: float) -> dict[str, float]:
    return {"measured": measured, "simulated": simulated, "ratio": simulated / measured}


def compare(replicas: int, saturated: dict[str, Any], open_load: dict[str, Any]) -> dict[str, Any]:
    simulated = _simulated_waits(replicas)
    tokens_per_s = _simulated_throughput(replicas, saturated["clients"])
    pairs = {"tokens_per_s": (saturated["tokens_per_s"], tokens_per_s)}
    pairs |= {f"p{share}_s": (open_load[f"p{share}_s"], percentile(simulated, share / 100)) for share in (50, 95, 99)}
    return {"replicas": replicas, "requests": len(simulated)} | {name: _pair(*pair) for name, pair in pairs.items()}


def _simulated_waits(replicas: int) -> list[float]:
    _, coming = schedule_of(replicas)
    ended = run(
        Fleet(replicas, _STACK_SPEED, costs=_STACK_COSTS),
        [Arrival(at_s, question.lengths) for at_s, question in coming],
    )
    return [one.latency_s for one in ended]


def _simulated_throughput(replicas: int, num_clients: int) -> float:
    """Throughput of a closed loop: each client sends its next request when the previous one is answered."""
    clock, asked, answers = Clock(), questions(0), list[Answered]()

    def send() -> None:
        cluster.send(Arrival(clock.now_s, next(asked).lengths))

    def on_end(one: FinishedRequest) -> None:
        answers.append(Answered(one.at_s, clock.now_s, "right", one.num_tokens))
        if clock.now_s < _WARM_UP_S + _MEASURED_S:
            send()

    cluster = SimulatedCluster(Fleet(replicas, _STACK_SPEED, costs=_STACK_COSTS), clock, on_end)
    for _ in range(num_clients):
        send()
    clock.run()
    return steady_tokens_per_s(answers, _WARM_UP_S, _WARM_UP_S + _MEASURED_S)


@app.command()
def tables(json_path: Json = None) -> None:
    """Computes the simulated figures of docs/capacity.md; takes minutes."""
    demand = Demand(SAMPLE, 200.0, 0.5, speed_of(SAMPLE))
    with ProcessPoolExecutor() as pool:
        found = {
            "plans": pool.map(_planned, *zip(*_asked(), strict=True)),
            "sensitivity": pool.map(_planned, *zip(*_changed(demand), strict=True)),
            "curve": pool.map(_point, itertools.repeat(demand), _CURVE),
            "regions": pool.map(_region, itertools.repeat(demand), (60.0, 2.0)),
        }
        results = {name: list(rows) for name, rows in found.items()}
    _finish(results, json_path)


@app.command()
def limits(json_path: Json = None) -> None:
    """Computes the load on ingresses and controller for clusters of several sizes."""
    _finish({"limits": list(map(_limits, SIZES)), "controller": list(_controller())}, json_path)


@app.command()
def cells(json_path: Json = None) -> None:
    """Divides 1,000 replicas into cells, and simulates the loss of one without spare GPUs; takes minutes."""
    demand = Demand(SAMPLE, 1.0, 0.5, speed_of(SAMPLE), timeout_s=_CELL_TIMEOUT_S)
    full_rps = CELLS_REPLICAS * demand.speed.full_tokens_per_s / SAMPLE.request_tokens
    demand = replace(demand, rps=AutoscalingConfig().target_utilisation * full_rps)
    chosen = fewest_cells(demand, CELLS_REPLICAS).count
    _finish(
        {
            "rps": demand.rps,
            "chosen": chosen,
            "cells": [_lost_cell(demand, count) for count in _CELLS],
            "tenants": list(_hashed(chosen)),
        },
        json_path,
    )


def _lost_cell(demand: Demand, count: int) -> dict[str, Any]:
    plain, slow = (cells_of(demand, CELLS_REPLICAS, count, cadence) for cadence in (Cadence(), Cadence(10.0, 10.0)))
    lost = Loss(
        regions=count,
        start_s=60.0,
        failover_s=_GATEWAY_FAILOVER_S,
        max_replicas=plain.replicas,
        watched_s=15.0,
        calm_s=8.0,
    )
    loss = lose_region(replace(demand, rps=demand.rps / count), plain.replicas, lost)
    sent_after = demand.rps / (count - 1) * (lost.watched_s - lost.failover_s)
    return asdict(plain) | {
        "controller_cpus_each_10_s": slow.controller_cpus,
        "p99_before_s": loss.p99_s[int(loss.lost_at_s) - 1],
        "worst_p99_s": loss.worst_p99_s,
        "refused": loss.num_refused / sent_after,
        "failed": loss.unreachable,
    }


def _hashed(count: int) -> Iterator[dict[str, Any]]:
    """Load of the fullest cell by hash of tenant: median and 95th percentile over random hash functions."""
    for name, tenants, exponent in (
        ("100 equal tenants", 100, 0.0),
        ("1,000 equal tenants", 1_000, 0.0),
        ("1,000 tenants, Zipf", 1_000, 1.0),
    ):
        loads = [rank**-exponent for rank in range(1, tenants + 1)]
        fullest = [fullest_cell(loads, count, seed) for seed in range(_HASHES)]
        row = {"tenants": name, "largest": max(loads) / sum(loads)}
        yield row | {"median": percentile(fullest, 0.5), "p95": percentile(fullest, 0.95)}


def _asked() -> Iterator[tuple[dict[str, Any], Demand]]:
    for (name, mix), rps, gpu in itertools.product(MIXES.items(), RATES, GPUS):
        yield {"mix": name, "rps": rps, "gpu": gpu}, Demand(mix, rps, P99_S[gpu], speed_of(mix, gpu=gpu))
    for rps in (1.0, 5.0):
        name, mix = next(iter(MIXES.items()))
        speed = speed_of(mix, model=PlannedModel.EMBEDDED)
        yield {"mix": name, "rps": rps, "gpu": "one core"}, Demand(mix, rps, 2.0, speed)


def _changed(demand: Demand) -> Iterator[tuple[dict[str, Any], Demand]]:
    """Yields the example load, with one assumption changed at a time."""
    changed = {
        "baseline": demand,
        "half the speed (MFU 0.2)": replace(demand, speed=speed_of(SAMPLE, mfu=0.2)),
        "a quarter faster (MFU 0.5)": replace(demand, speed=speed_of(SAMPLE, mfu=0.5)),
        "the 4B, p99 within 1 s": replace(demand, p99_s=1.0, speed=speed_of(SAMPLE, model=PlannedModel.MISTRAL_4B)),
        "p99 within 1 s": replace(demand, p99_s=1.0),
        "p99 within 350 ms": replace(demand, p99_s=0.35),
        "bursts (squared variation 8)": replace(demand, burstiness=8.0),
        "10 ms more overhead per batch": replace(demand, speed=replace(demand.speed, batch_overhead_s=0.012)),
    }
    yield from (({"change": name}, asked) for name, asked in changed.items())


def _planned(asked: dict[str, Any], demand: Demand) -> dict[str, Any]:
    return asked | {"p99_s": demand.p99_s} | _smallest(demand)


def _smallest(demand: Demand) -> dict[str, Any]:
    try:
        plan = smallest(demand)
    except CannotMeet as cannot:
        return {"replicas": None, "best_p99_s": cannot.p99_s}
    return {"replicas": plan.replicas, "measured": asdict(plan.measured)}


def _point(demand: Demand, replicas: int) -> dict[str, Any]:
    measured = measure(demand, replicas, 3_000)
    assert measured is not None
    return {"replicas": replicas} | asdict(measured)


def _region(demand: Demand, timeout_s: float) -> dict[str, Any]:
    """Simulates the example load in three regions, one of which is lost."""
    share = replace(demand, rps=demand.rps / 3, timeout_s=timeout_s)
    plan, after = smallest(share), smallest(replace(share, rps=demand.rps / 2))
    loss = lose_region(share, plan.replicas, Loss(regions=3, start_s=60.0, watched_s=240.0))
    shown = asdict(loss) | {"worst_p99_s": loss.worst_p99_s, "num_refused": loss.num_refused}
    return {"timeout_s": timeout_s, "planned": plan.replicas, "planned_after": after.replicas} | shown


def _limits(replicas: int) -> dict[str, Any]:
    """Load on a cluster whose replicas are 80% busy with requests of the example."""
    demand = Demand(SAMPLE, 1.0, 0.5, speed_of(SAMPLE))
    rps = 0.8 * replicas * demand.speed.full_tokens_per_s / SAMPLE.request_tokens
    demand = replace(demand, rps=rps)
    return {
        "replicas": replicas,
        "rps": rps,
        "each second": asdict(limits_of(demand, replicas)),
        "each 10 s": asdict(limits_of(demand, replicas, Cadence(10.0, 10.0))),
    }


def _controller() -> Iterator[dict[str, Any]]:
    for replicas in (round(10 ** (power / 10)) for power in range(10, 36)):
        shown = _limits(replicas)
        cpus = {name: shown[name]["controller_cpus"] for name in ("each second", "each 10 s")}
        yield {"replicas": replicas} | cpus


def recorded(file: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    return record


def _finish(results: dict[str, Any], path: Path | None) -> None:
    text = json.dumps(_rounded(results), indent=1)
    Console().print_json(text)
    if path:
        record = provenance(["rerank-service", "ray"]) | {"results": _rounded(results)}
        save_record(path, record)


def _rounded(value: Any) -> Any:
    """Rounds all numbers to four digits. Infinity becomes null, because JSON cannot represent it."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    app()
