"""What callers of one overloaded replica are promised and get: its own queue and admission, in virtual time.

    python -m benchmarks.callers [--seeds 8] [--json benchmarks/results/callers.json]

Three times the load that the replica can score, with skewed request sizes, from a varying number of callers; in some
scenarios one more caller sends small requests below its share.
"""

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.provenance import provenance
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.replica import SimulatedReplica, SimulatedShard
from rerank_service.tools.planning.speed import ReplicaSpeed

TOKENS_PER_S = 10_000.0
DEADLINES: dict[tuple[float, ...], float] = {(2.0, 8.0): 60.0, (60.0,): 240.0}
"""Deadlines in seconds, drawn at random, and how long the load lasts."""


@dataclass(frozen=True)
class Scenario:
    """A load."""

    name: str
    num_callers: int | None
    """Equal callers that send the overload together; null: a new one for each request."""
    quiet_tokens_per_s: float = 0.0
    """Sent by one more caller, in requests of 5 passages."""
    load: float = 3.0
    """Of the others, as a multiple of what the replica can score."""


SCENARIOS = (
    Scenario("1 caller", 1),
    Scenario("2 callers", 2),
    Scenario("5 callers", 5),
    Scenario("20 callers", 20),
    Scenario("a new caller for each request", None),
    Scenario("1 caller and a quiet one", 1, 2_000.0),
    Scenario("5 callers and a quiet one", 5, 800.0),
    Scenario("20 callers and a quiet one", 20, 240.0),
    Scenario("1 caller at 70% load", 1, load=0.7),
    Scenario("5 callers at 70% load", 5, load=0.7),
    Scenario("20 callers at 70% load", 20, load=0.7),
)
"""The quiet caller sends half of an equal share or less."""


@dataclass
class Outcome:
    """Tokens and requests of one run, or of several together."""

    duration_s: float = 0.0
    tokens: Counter[str] = field(default_factory=Counter)
    """By end: `accepted`, `late`, `in time` (the latter only while the load lasts)."""
    requests: Counter[str] = field(default_factory=Counter)
    """By end, and those of the quiet caller apart: `quiet sent`, `quiet refused`, `quiet late`."""

    @property
    def late_tokens(self) -> float:
        """Share of the accepted tokens whose request missed its deadline."""
        return self.tokens["late"] / max(1, self.tokens["accepted"])

    @property
    def goodput(self) -> float:
        """Share of the device's time that went into answers that came in time."""
        return self.tokens["in time"] / (self.duration_s * TOKENS_PER_S)

    @property
    def quiet_refused(self) -> float:
        """Share of the quiet caller's requests."""
        return self.requests["quiet refused"] / max(1, self.requests["quiet sent"])

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(self.duration_s + other.duration_s, self.tokens + other.tokens, self.requests + other.requests)


class Contest:
    """A replica that callers send requests to."""

    def __init__(self, max_in_flight: int = 1, overhead_s: float = 0.0) -> None:
        self.clock = Clock()
        self.speed = ReplicaSpeed(TOKENS_PER_S, overhead_s, max_in_flight=max_in_flight, max_batch_tokens=1_000)
        self.replica = SimulatedReplica(self.clock, self.speed, self._done)
        self.waited_s: dict[str, list[float]] = {}
        self.refused: Counter[str] = Counter()
        self.accepted: list[SimulatedShard] = []
        self.ends: list[tuple[SimulatedShard, float, bool]] = []
        """SimulatedShard, when it was done, whether in time."""
        self._numbers = itertools.count()

    def send(self, at_s: float, caller: str, lengths: list[int], timeout_s: float = 60.0) -> None:
        """Has a caller send a request."""
        self.clock.at(at_s, self._send, caller, lengths, timeout_s)

    def _send(self, caller: str, lengths: list[int], timeout_s: float) -> None:
        now_s = self.clock.now_s
        job = SimulatedShard(str(next(self._numbers)), (now_s, now_s + timeout_s), lengths, caller)
        if self.replica.submit(job, now_s + timeout_s):
            self.accepted.append(job)
            self.clock.at(now_s + timeout_s, self._give_up, job)
        else:
            self.refused[caller] += 1

    def _done(self, job: SimulatedShard) -> None:
        sent_s, deadline_s = job.owner
        if self.clock.now_s <= deadline_s:
            self.waited_s.setdefault(job.caller, []).append(self.clock.now_s - sent_s)
            self.ends.append((job, self.clock.now_s, True))

    def _give_up(self, job: SimulatedShard) -> None:
        """As the service does after the caller's deadline."""
        if job.num_open:
            self.replica.discard(job)
            self.ends.append((job, self.clock.now_s, False))


def simulate(scenario: Scenario, deadlines_s: tuple[float, ...], max_in_flight: int, seed: int) -> Outcome:
    """One run."""
    rng, duration_s = random.Random(seed), DEADLINES[deadlines_s]  # noqa: S311 - a simulation
    contest = Contest(max_in_flight)
    num_sent, num_tokens = 0, 0
    for at_s, lengths in _arrivals(rng, scenario.load, duration_s):
        caller = f"{num_sent if scenario.num_callers is None else rng.randrange(scenario.num_callers)}"
        contest.send(at_s, caller, lengths, rng.choice(deadlines_s))
        num_sent += 1
        num_tokens += sum(lengths)
    num_quiet = int(duration_s * scenario.quiet_tokens_per_s / 1_000)
    for _ in range(num_quiet):
        lengths = [rng.randint(100, 300) for _ in range(5)]
        num_tokens += sum(lengths)
        contest.send(rng.uniform(0.0, duration_s), "quiet", lengths, rng.choice(deadlines_s))
    contest.clock.run()
    outcome = Outcome(duration_s)
    outcome.tokens["sent"] = num_tokens
    for job in contest.accepted:
        outcome.tokens["accepted"] += job.num_tokens
        outcome.requests["accepted"] += 1
    for job, done_s, is_in_time in contest.ends:
        if not is_in_time:
            outcome.tokens["late"] += job.num_tokens
            outcome.requests["late"] += 1
            outcome.requests["quiet late"] += job.caller == "quiet"
        elif done_s <= duration_s:
            outcome.tokens["in time"] += job.num_tokens
    outcome.requests["sent"] = num_sent + num_quiet
    outcome.requests["quiet sent"] = num_quiet
    outcome.requests["quiet refused"] = contest.refused["quiet"]
    return outcome


def _arrivals(rng: random.Random, load: float, duration_s: float) -> Iterator[tuple[float, list[int]]]:
    """When requests come, and their lengths."""
    at_s = 0.0
    while at_s < duration_s:
        lengths = [rng.randint(50, 400) for _ in range(rng.choice([1, 2, 5, 20, 60]))]
        yield at_s, lengths
        at_s += rng.expovariate(1.0) * sum(lengths) / (load * TOKENS_PER_S)


def main(seeds: int = 8, json_path: Annotated[Path | None, typer.Option("--json")] = None) -> None:
    """Prints a table, and writes it if asked to."""
    rows = []
    for scenario, deadlines_s, max_in_flight in itertools.product(SCENARIOS, DEADLINES, (1, 2)):
        runs = map(partial(simulate, scenario, deadlines_s, max_in_flight), range(seeds))
        outcome = sum(runs, Outcome())
        row = {
            "scenario": scenario.name,
            "deadlines_s": deadlines_s,
            "max_in_flight": max_in_flight,
            "goodput": round(outcome.goodput, 3),
            "late_tokens": round(outcome.late_tokens, 4),
            "late_requests": round(outcome.requests["late"] / outcome.requests["accepted"], 4),
            "refused_requests": round(1 - outcome.requests["accepted"] / outcome.requests["sent"], 3),
            "quiet_refused": round(outcome.quiet_refused, 4),
            "quiet_late": outcome.requests["quiet late"],
        }
        rows.append(row)
        print(" | ".join(str(value) for value in row.values()), flush=True)
    if json_path:
        record = provenance(["rerank-service"]) | {"seeds": seeds, "rows": rows}
        json_path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
