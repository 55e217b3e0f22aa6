"""Simulates autoscaling, request by request, under a tenfold load, a large request and a controller restart.

    python -m benchmarks.autoscaling_requests [--json benchmarks/results/autoscaling-requests.json]

The service is simulated by `tools.planning`, on a virtual clock. Refused clients retry like
`rerank_service.client`: after `Retry-After` plus up to a quarter of a second, at most `_MAX_RETRIES` times.
"""

import random
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.provenance import provenance, save_record
from rerank_service.config import AutoscalingConfig
from rerank_service.tools.planning.autoscaler import Autoscaler, ScaledCluster
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.cluster import End, FinishedRequest, Fleet, SimulatedCluster
from rerank_service.tools.planning.speed import ReplicaSpeed
from rerank_service.tools.planning.workload import Arrival, Mix, Phase, arrivals

__all__ = ["ScalingOutcome", "controller_restart", "large_request", "step"]

_SPEED = ReplicaSpeed(20_000.0)
_MIX = Mix({20: 1}, 200)
_CALM_S = 40.0
_START_S = 120.0
_MAX_REPLICAS = 40
_MAX_RETRIES = 2


@dataclass(frozen=True)
class ScalingOutcome:
    """Result of a run."""

    capacity_after_s: int | None
    """Time from the step until the running replicas suffice for the load; null if they never do."""
    most_wanted: int
    """Highest target after the step."""
    least_wanted: int
    """Lowest target after the step."""
    ends: dict[str, int]
    """Number of requests by outcome; every retry counts as a request."""


class _Playback:
    def __init__(self, replicas: int, timeout_s: float, start_s: float, until_s: float) -> None:
        self.clock = Clock()
        self._ended: list[FinishedRequest] = []
        self._rng = random.Random("retries")  # noqa: S311 - a simulation
        self.cluster = SimulatedCluster(Fleet(replicas, _SPEED, timeout_s=timeout_s), self.clock, self._ended.append)
        options = AutoscalingConfig(min_replicas=1, max_replicas=_MAX_REPLICAS, initial_replicas=replicas)
        self.autoscaler = Autoscaler(options, _SPEED.full_tokens_per_s, start_s)
        self.scaled = ScaledCluster(self.cluster, self.autoscaler, self.clock, start_s, until_s)
        self._until_s = until_s

    def play(self, phases: list[Phase], keeps_id: bool = True) -> None:
        for arrival in takewhile(lambda one: one.at_s < self._until_s, arrivals(_MIX, phases)):
            self.clock.at(arrival.at_s, self.send, arrival, keeps_id)
        self.scaled.start()
        self.clock.run()

    def send(self, arrival: Arrival, keeps_id: bool, num_retries: int = 0) -> None:
        def come_back(retry_after_s: float) -> None:
            if num_retries < _MAX_RETRIES:
                at_s = self.clock.now_s + retry_after_s + self._rng.uniform(0.0, 0.25)
                self.clock.at(at_s, self.send, arrival, keeps_id, num_retries + 1)

        self.cluster.send(arrival, num_retries > 0 and keeps_id, come_back)

    def outcome(self, load: float, from_s: float) -> ScalingOutcome:
        first = int(from_s)
        full_at = next((at for at in range(first, len(self.scaled.replicas)) if self.scaled.replicas[at] >= load), None)
        targets = self.scaled.targets[first * 10 :]
        ends = {end.value: sum(one.end is end for one in self._ended) for end in End}
        return ScalingOutcome(None if full_at is None else full_at - first, max(targets), min(targets), ends)


def step(timeout_s: float, keeps_id: bool = True) -> ScalingOutcome:
    """A step from 0.8 of one replica's throughput to ten times that load. Retries keep the request's id if `keeps_id`
    is true."""
    until_s = _CALM_S + _START_S + 30.0
    run = _Playback(1, timeout_s, _START_S, until_s)
    rps = 0.8 * _SPEED.full_tokens_per_s / _MIX.request_tokens
    run.play([Phase(0.0, rps), Phase(_CALM_S, 10 * rps)], keeps_id)
    return run.outcome(8.0, _CALM_S)


def large_request(start_s: float = _START_S) -> ScalingOutcome:
    """A request with 512 passages of 512 tokens, 13 s of work for one replica, in addition to a utilisation of 0.1."""
    until_s = _CALM_S + 60.0
    run = _Playback(1, 60.0, start_s, until_s)
    rps = 0.1 * _SPEED.full_tokens_per_s / _MIX.request_tokens
    run.clock.at(_CALM_S, run.send, Arrival(_CALM_S, [512] * 512), True)
    run.play([Phase(0.0, rps)])
    return run.outcome(1.0, _CALM_S)


def controller_restart() -> ScalingOutcome:
    """Four replicas at a utilisation of 0.7. The controller crashes, and its successor finds the replicas after 5 s."""
    until_s = _CALM_S + 60.0
    run = _Playback(4, 60.0, _START_S, until_s)
    rps = 2.8 * _SPEED.full_tokens_per_s / _MIX.request_tokens
    run.clock.at(_CALM_S, run.autoscaler.restart, _CALM_S, 5.0)
    run.play([Phase(0.0, rps)])
    return run.outcome(2.8, _CALM_S)


def main(json_path: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None) -> None:
    """Simulates all cases."""
    outcomes = {f"tenfold load, limit {limit:g} s": step(limit) for limit in (2.0, 10.0, 60.0)}
    outcomes |= {
        f"tenfold load, limit {limit:g} s, each retry with a new id": step(limit, keeps_id=False)
        for limit in (2.0, 10.0, 60.0)
    }
    outcomes |= {"one request of 262,144 tokens": large_request(), "controller restarted": controller_restart()}
    table = Table("case", "capacity after s", "lowest target", "highest", *(end.value for end in End))
    for name, outcome in outcomes.items():
        figures = (outcome.capacity_after_s, outcome.least_wanted, outcome.most_wanted, *outcome.ends.values())
        table.add_row(name, *map(str, figures))
    Console().print(table)
    if json_path:
        results = {name: asdict(outcome) for name, outcome in outcomes.items()}
        record = provenance(["rerank-service", "ray"]) | {"results": results}
        save_record(json_path, record)


if __name__ == "__main__":
    typer.run(main)
