"""Simulates how many ingresses choose replicas, with the service's own routing code in virtual time.

    python -m benchmarks.routing [--json benchmarks/results/routing.json] [--requests 6000]

The rules that are compared:

- `own tokens`: the ingress counts only the tokens that it has in flight itself.
- `reports`: it also counts the backlogs reported with replies. A report stays unchanged until the next report.
- `fading reports`: like `reports`, but reports decay towards the mean.
- `power of two`, `power of four`: like `fading reports`, but the ingress chooses among two or four random replicas.
- `fading + declines`: the service's rule. It is like `fading reports`, and replicas may also decline a shard.
"""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import typer
from rich.console import Console

from benchmarks.provenance import provenance, save_record
from rerank_service.messages import ReplicaLoad
from rerank_service.routing import replica_table
from rerank_service.routing.replica_table import ReplicaTable
from rerank_service.tools.bench.workload import Lengths
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.cluster import FinishedRequest, Fleet, SimulatedCluster, percentile
from rerank_service.tools.planning.costs import HAPROXY, CpuCost, StackCosts
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Mix, Phase, arrivals

REPLICAS = 24
INGRESSES = (1, 4, 16, 64)
LOADS = (0.5, 0.7, 0.85, 0.95)
SPEED = ReplicaSpeed(tokens_per_s=100_000.0, batch_overhead_s=0.002)
MIXES = {"skewed": Mix({10: 4, 40: 3, 160: 1}, Lengths.SHORT), "even": Mix({40: 1}, 128)}
COSTS = StackCosts(CpuCost(0.0, 0.0, 0.0), HAPROXY.other, 0.0013, 0.0013, 1e9, 8)
"""Costs of transport only: ingresses and tokenisers never run out of CPU, so the cases differ only in routing."""


class OwnTokens(ReplicaTable):
    """The rule that ignores reports."""

    def add_report(self, load: ReplicaLoad) -> None:
        """Ignores the report."""


class Declining(ReplicaTable):
    """The service's rule."""


class Reports(ReplicaTable):
    """The rule with reports but without declines."""

    def decline_above(self, replica: str, num_tokens: int) -> int | None:
        """Sets no limit, so a replica never declines."""
        return None


class _OfRandom(Reports):
    candidates = 2

    def best(self, replicas: Sequence[Any], id_of: Callable[[Any], str], num_tokens: int, **options: Any) -> list[Any]:
        """Chooses the best of a few random replicas."""
        drawn = random.sample(list(replicas), self.candidates)
        return super().best(drawn, id_of, num_tokens, **options)


class PowerOfTwo(_OfRandom):
    """The rule that chooses the better of two random replicas."""


class PowerOfFour(_OfRandom):
    """The rule that chooses the best of four random replicas."""

    candidates = 4


RULES: dict[str, tuple[type[ReplicaTable], float]] = {
    "own tokens": (OwnTokens, 4.0),
    "reports": (Reports, math.inf),
    "fading reports": (Reports, 4.0),
    "power of two": (PowerOfTwo, 4.0),
    "power of four": (PowerOfFour, 4.0),
    "fading + declines": (Declining, 4.0),
}


@dataclass(frozen=True)
class Case:
    """Settings of a simulation."""

    rule: str
    ingresses: int
    load: float
    mix: str = "skewed"
    slow_replicas: int = 0


def simulate(case: Case, num_requests: int, seed: int = 0) -> dict[str, Any]:
    """Simulates a case. Latencies are multiples of the time that an idle replica takes for the average request."""
    mix = MIXES[case.mix]
    service_s = mix.request_tokens / SPEED.full_tokens_per_s
    rps = case.load * (REPLICAS - case.slow_replicas / 2) / service_s
    table, memory = RULES[case.rule]
    fleet = Fleet(REPLICAS, SPEED, case.ingresses, COSTS, math.inf, case.slow_replicas)
    clock, ended = Clock(), list[FinishedRequest]()
    random.seed(seed)
    with (
        mock.patch("rerank_service.tools.planning.cluster.ReplicaTable", table),
        mock.patch.object(replica_table, "_MEMORY_SHARDS", memory),
    ):
        cluster = SimulatedCluster(fleet, clock, ended.append, seed)
        for request in itertools.islice(arrivals(mix, [Phase(0.0, rps)], seed=seed), num_requests):
            clock.at(request.at_s, cluster.send, request)
        clock.run()
    latencies = [one.latency_s / service_s for one in ended[num_requests // 10 :]]
    shown = {"p50": percentile(latencies, 0.5), "p99": percentile(latencies, 0.99)}
    return shown | {"declined": cluster.num_declined / cluster.num_sent}


def _median(case: Case, num_requests: int, seeds: int) -> dict[str, Any]:
    rows = [simulate(case, num_requests, seed) for seed in range(seeds)]
    return asdict(case) | {
        name: round(sorted(row[name] for row in rows)[len(rows) // 2], 3) for name in ("p50", "p99", "declined")
    }


def _cases() -> list[Case]:
    rules = [Case(rule, ingresses, 0.85) for rule in RULES for ingresses in INGRESSES]
    ends = ("own tokens", "fading + declines")
    loads = [Case(rule, number, load) for load in LOADS if load != 0.85 for rule in ends for number in INGRESSES]
    even = [Case(rule, number, 0.85, "even") for rule in ends for number in INGRESSES]
    slow = [Case(rule, number, 0.85, slow_replicas=1) for rule in ends for number in INGRESSES]
    return rules + loads + even + slow


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
    requests: Annotated[int, typer.Option(help="Requests per simulation; the first tenth is not counted.")] = 6_000,
    seeds: Annotated[int, typer.Option(help="Simulations per case; medians are shown.")] = 3,
) -> None:
    """Simulates all cases."""
    cases = _cases()
    with ProcessPoolExecutor(2) as pool:
        results = list(pool.map(_median, cases, itertools.repeat(requests), itertools.repeat(seeds)))
    Console().print_json(data=results)
    if json_path:
        record = provenance(["rerank-service", "ray"]) | {"replicas": REPLICAS, "results": results}
        save_record(json_path, record)


if __name__ == "__main__":
    typer.run(main)
