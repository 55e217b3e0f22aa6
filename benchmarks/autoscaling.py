"""Simulates autoscaling during a step of load and ten noisy minutes, with the service's policy and Serve's delays.

    python -m benchmarks.autoscaling [--json benchmarks/results/autoscaling.json] [--plot docs/images/autoscaling.svg]

On a virtual clock, replicas score a fixed number of tokens per second and take a fixed time to start. As in Serve,
reports are averaged over the look-back period and are one reporting interval old. The simulation shows only the
decisions of the policy. The plot needs matplotlib, which the extra `tools` installs.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.provenance import provenance, save_record
from rerank_service.config import AutoscalingConfig
from rerank_service.tools.planning.autoscaler import TICK_S, Autoscaler

__all__ = ["SCENARIOS", "LoadScenario", "ScalingRun", "simulate"]


@dataclass(frozen=True)
class LoadScenario:
    """A load over time, and the service that handles it."""

    name: str
    load: Callable[[float], float]
    """Offered tokens per second at a given time, as a multiple of one replica's throughput."""
    duration_s: float
    start_s: float
    """Startup time of a replica."""
    options: AutoscalingConfig


@dataclass(frozen=True)
class ScalingRun:
    """A simulated run, with one value per second."""

    name: str
    offered: list[float]
    """Offered load, as a multiple of one replica's throughput."""
    replicas: list[int]
    wait_s: list[float]
    """Backlog divided by the throughput of the running replicas."""

    @property
    def reversals(self) -> int:
        """Number of times that scaling changed direction."""
        changes = [after - before for before, after in pairwise(self.replicas)]
        signs = [change > 0 for change in changes if change]
        return sum(before != after for before, after in pairwise(signs))

    def first_at(self, num_replicas: int) -> int | None:
        """First second in which at least `num_replicas` are running."""
        return next((second for second, running in enumerate(self.replicas) if running >= num_replicas), None)


def simulate(scenario: LoadScenario) -> ScalingRun:
    """Simulates a scenario deterministically. Work is a fluid here; `tools.planning` simulates individual requests."""
    options = scenario.options
    autoscaler = Autoscaler(options, tokens_per_s=1.0, start_s=scenario.start_s)
    starting: list[float] = []  # times at which replicas become ready
    running, waiting, offered_tokens = options.min_replicas, 0.0, 0.0
    run = ScalingRun(scenario.name, [], [], [])
    for tick in range(round(scenario.duration_s / TICK_S)):
        now = tick * TICK_S
        running += sum(ready <= now for ready in starting)
        starting = [ready for ready in starting if ready > now]
        offered = scenario.load(now)
        waiting = max(0.0, waiting + (offered - running) * TICK_S)
        offered_tokens += offered * TICK_S
        target = autoscaler.decide(now, offered_tokens, waiting, running)
        if target > running + len(starting):
            starting += [now + scenario.start_s] * (target - running - len(starting))
        elif target < running + len(starting):
            starting = starting[: max(0, target - running)]
            running = min(running, target)
        if tick % round(1 / TICK_S) == 0:
            run.offered.append(round(offered, 3))
            run.replicas.append(running)
            run.wait_s.append(round(waiting / max(running, 1), 3))
    return run


def _noisy(seed: int) -> Callable[[float], float]:
    """A load of about two replicas' throughput, with a slow wave, noise that changes every second, and bursts of five
    seconds."""
    rng = random.Random(seed)  # noqa: S311 - a simulation
    noise = [rng.lognormvariate(-0.06, 0.35) for _ in range(3600)]
    bursts = [rng.random() < 0.03 for _ in range(720)]
    return lambda now: (2 + 0.6 * math.sin(now / 70)) * noise[int(now)] * (2 if bursts[int(now / 5)] else 1)


SCENARIOS = (
    LoadScenario(
        "step from idle to 2.8 replicas' worth; replicas start in 3 s",
        lambda now: 0.2 if now < 10 else 2.8,
        60,
        3.0,
        AutoscalingConfig(min_replicas=1, max_replicas=4),
    ),
    LoadScenario(
        "ten noisy minutes; replicas start in 30 s, as a GPU model does",
        _noisy(seed=7),
        600,
        30.0,
        AutoscalingConfig(min_replicas=1, max_replicas=8),
    ),
)


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="File for the runs.")] = None,
    plot_path: Annotated[Path | None, typer.Option("--plot", help="File for the plot.")] = None,
) -> None:
    """Simulates both scenarios."""
    runs = [simulate(scenario) for scenario in SCENARIOS]
    table = Table("scenario", "most replicas", "reversals", "longest wait")
    for run in runs:
        table.add_row(run.name, str(max(run.replicas)), str(run.reversals), f"{max(run.wait_s):.1f} s")
    Console().print(table)
    if json_path:
        results = [asdict(run) | {"reversals": run.reversals} for run in runs]
        save_record(json_path, provenance(["rerank-service", "ray"]) | {"results": results})
    if plot_path:
        _plot(runs, plot_path)


def _plot(runs: Sequence[ScalingRun], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(runs), 1, figsize=(8, 2.9 * len(runs)), layout="constrained")
    for axis, run in zip(axes, runs, strict=True):
        axis.plot(run.offered, color="#9aa0a6", linewidth=1, label="load, in replicas")
        axis.step(range(len(run.replicas)), run.replicas, where="post", color="#d1495b", label="replicas running")
        axis.plot(run.wait_s, color="#30638e", linewidth=1, linestyle="--", label="wait, s")
        axis.set_title(run.name, loc="left", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("seconds")
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path)


if __name__ == "__main__":
    typer.run(main)
