"""Simulates fairness between the callers of one overloaded replica, with the service's queue and admission rules.

    python -m benchmarks.callers [--seeds 8] [--json benchmarks/results/callers.json]

The callers together send three times as many tokens as the replica can score or, in some scenarios, 70% of the tokens
that it can score. Their requests have skewed sizes. In other scenarios, one more caller, the quiet one, sends small
requests below its share.
"""

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.provenance import provenance, save_record
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.replica import SimulatedReplica, SimulatedShard
from rerank_service.tools.planning.speed import ReplicaSpeed

TOKENS_PER_S = 10_000.0
DEADLINES: dict[tuple[float, ...], float] = {(2.0, 8.0): 60.0, (60.0,): 240.0}
"""Possible deadlines of a request, drawn at random, and the duration of the load, all in seconds."""


@dataclass(frozen=True)
class Scenario:
    """The load of one simulation."""

    name: str
    num_callers: int | None
    """Number of callers that share the load equally; null: every request has a new caller."""
    quiet_tokens_per_s: float = 0.0
    """Load of the quiet caller, which sends requests with 5 passages."""
    load: float = 3.0
    """Load of the other callers, as a multiple of the replica's speed."""


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
"""All scenarios. The quiet caller sends at most half of an equal share."""


@dataclass
class Outcome:
    """Tokens and requests of one run, or the sum of several runs."""

    duration_s: float = 0.0
    tokens: Counter[str] = field(default_factory=Counter)
    """Tokens by outcome: `sent`, `accepted`, `late`, and, while the load lasts, `in time`."""
    requests: Counter[str] = field(default_factory=Counter)
    """Requests `sent`, `accepted` and `late`; the quiet caller's are `quiet sent`, `quiet refused` and `quiet late`."""

    @property
    def late_tokens(self) -> float:
        """Share of the accepted tokens whose request missed its deadline."""
        return self.tokens["late"] / max(1, self.tokens["accepted"])

    @property
    def goodput(self) -> float:
        """Share of the device's time spent on requests that met their deadline."""
        return self.tokens["in time"] / (self.duration_s * TOKENS_PER_S)

    @property
    def quiet_refused(self) -> float:
        """Share of the quiet caller's requests that were refused."""
        return self.requests["quiet refused"] / max(1, self.requests["quiet sent"])

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(self.duration_s + other.duration_s, self.tokens + other.tokens, self.requests + other.requests)


class Contest:
    """One replica, and the outcomes of the requests that callers send to it."""

    def __init__(self, max_in_flight: int = 1, overhead_s: float = 0.0) -> None:
        self.clock = Clock()
        self.speed = ReplicaSpeed(TOKENS_PER_S, overhead_s, max_in_flight=max_in_flight, max_batch_tokens=1_000)
        self.replica = SimulatedReplica(self.clock, self.speed, self._done)
        self.waited_s: dict[str, list[float]] = {}
        self.refused: Counter[str] = Counter()
        self.accepted: list[SimulatedShard] = []
        self.ends: list[tuple[SimulatedShard, float, bool]] = []
        """Each finished request, the time at which it ended, and whether it met its deadline."""
        self._numbers = itertools.count()

    def send(self, at_s: float, caller: str, lengths: list[int], timeout_s: float = 60.0) -> None:
        """Schedules a caller's request."""
        self.clock.at(at_s, self._send, caller, lengths, timeout_s)

    def _send(self, caller: str, lengths: list[int], timeout_s: float) -> None:
        now_s = self.clock.now_s
        shard = SimulatedShard(str(next(self._numbers)), (now_s, now_s + timeout_s), lengths, caller)
        if self.replica.submit(shard, now_s + timeout_s):
            self.accepted.append(shard)
            self.clock.at(now_s + timeout_s, self._give_up, shard)
        else:
            self.refused[caller] += 1

    def _done(self, shard: SimulatedShard) -> None:
        sent_s, deadline_s = shard.owner
        if self.clock.now_s <= deadline_s:
            self.waited_s.setdefault(shard.caller, []).append(self.clock.now_s - sent_s)
            self.ends.append((shard, self.clock.now_s, True))

    def _give_up(self, shard: SimulatedShard) -> None:
        """Cancels an unfinished request at its deadline, as the service does."""
        if shard.num_open:
            self.replica.discard(shard)
            self.ends.append((shard, self.clock.now_s, False))


def simulate(scenario: Scenario, deadlines_s: tuple[float, ...], max_in_flight: int, seed: int) -> Outcome:
    """Simulates one run."""
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
    for shard in contest.accepted:
        outcome.tokens["accepted"] += shard.num_tokens
        outcome.requests["accepted"] += 1
    for shard, done_s, is_in_time in contest.ends:
        if not is_in_time:
            outcome.tokens["late"] += shard.num_tokens
            outcome.requests["late"] += 1
            outcome.requests["quiet late"] += shard.caller == "quiet"
        elif done_s <= duration_s:
            outcome.tokens["in time"] += shard.num_tokens
    outcome.requests["sent"] = num_sent + num_quiet
    outcome.requests["quiet sent"] = num_quiet
    outcome.requests["quiet refused"] = contest.refused["quiet"]
    return outcome


def _arrivals(rng: random.Random, load: float, duration_s: float) -> Iterator[tuple[float, list[int]]]:
    """Arrival times of requests, with the lengths of their pairs."""
    at_s = 0.0
    while at_s < duration_s:
        lengths = [rng.randint(50, 400) for _ in range(rng.choice([1, 2, 5, 20, 60]))]
        yield at_s, lengths
        at_s += rng.expovariate(1.0) * sum(lengths) / (load * TOKENS_PER_S)


def main(seeds: int = 8, json_path: Annotated[Path | None, typer.Option("--json")] = None) -> None:
    """Simulates all scenarios, prints a table, and writes it to the file given by `--json`."""
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
        save_record(json_path, record)


if __name__ == "__main__":
    typer.run(main)
