"""Measures the contenders in rounds: each takes its turn between two runs of the bare forward pass.

The speed of a shared machine varies from minute to minute. Each contender is therefore compared with the mean of the
bare forward passes immediately before and after its turn. Servers run only during their turn, because idle servers use
CPU: a Ray session uses 0.18 of a core, so three sessions use a quarter of a machine with two cores.
"""

import asyncio
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.peers.bare_runs import BareFigures, mean_of, measure_bare
from benchmarks.peers.contenders import Contender, Launch
from benchmarks.peers.environments import BENCH_FOLDER
from benchmarks.peers.processes import Server, StartFailed, running
from benchmarks.peers.shared_model import LoadShape, SharedModels, Workload
from benchmarks.ports import free_port
from rerank_service.tools.bench.apis import PreparedRequest
from rerank_service.tools.bench.load import LoadRun
from rerank_service.tools.bench.measure import LoadFigures, measure_load
from rerank_service.tools.bench.probe import SmallBehindBig, probe_small_behind_big

__all__ = ["ContenderFigures", "Result", "Round", "RoundSettings", "is_close", "run_rounds"]

_WARM_UP_REQUESTS = 2
_CLOSE = 1.2
"""Contenders within this factor of the best contender with the same precision take part in every round."""
_ONE_CLIENT_SHARE = 3
"""One client sends every third of the requests: enough for a median."""


@dataclass(frozen=True)
class Round:
    """Figures of a contender in one round."""

    bare: BareFigures
    """Mean of the bare runs before and after this turn."""

    one_client: LoadFigures
    many_clients: LoadFigures
    small_behind_big: SmallBehindBig
    max_logit_error: float


_Turn = tuple[LoadFigures, LoadFigures, SmallBehindBig, float]
"""Figures of a turn, except the figures of the bare forward pass."""


@dataclass(frozen=True)
class ContenderFigures:
    """Medians over the rounds, in display order."""

    cpu_s_per_1k_pairs: float
    ratio_to_bare: float
    """CPU-seconds divided by those of the bare forward pass in the same round; median over the rounds."""

    peak_share: float | None
    """CPU-seconds of the matrix products alone in the same precision, divided by those of the server; null if this
    processor has no instructions for the precision."""

    pairs_per_s: float
    """Throughput with many clients."""

    p50_s: float
    """Median latency with one client."""

    wait_share: float | None
    max_logit_error: float
    """Largest difference from the logits of float32 transformers, over all rounds."""

    failures: dict[str, int]


@dataclass
class Result:
    """Results of a contender, added round by round."""

    contender: Contender
    versions: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    """Reason why the measurement stopped early; null if it did not."""

    rounds: list[Round] = field(default_factory=list)

    @property
    def figures(self) -> ContenderFigures | None:
        """Medians over the rounds; null if no round was completed."""
        if not self.rounds:
            return None
        cpu_s = [_cpu_s(done) for done in self.rounds]
        shares = [done.small_behind_big.wait_share for done in self.rounds]
        known_shares = [share for share in shares if share is not None]
        return ContenderFigures(
            cpu_s_per_1k_pairs=statistics.median(cpu_s),
            ratio_to_bare=statistics.median(
                cpu / done.bare.cpu_s_per_1k_pairs for cpu, done in zip(cpu_s, self.rounds, strict=True)
            ),
            peak_share=self._peak_share(),
            pairs_per_s=statistics.median(done.many_clients.passages_per_s for done in self.rounds),
            p50_s=statistics.median(_known(done.one_client.p50_s) for done in self.rounds),
            wait_share=statistics.median(known_shares) if known_shares else None,
            max_logit_error=max(done.max_logit_error for done in self.rounds),
            failures=_failures(self.rounds),
        )

    def _peak_share(self) -> float | None:
        products = [done.bare.products_cpu_s_per_1k_pairs.get(self.contender.precision) for done in self.rounds]
        shares = [cpu / _cpu_s(done) for cpu, done in zip(products, self.rounds, strict=True) if cpu is not None]
        return statistics.median(shares) if shares else None

    def add(self, recorded: dict[str, Any]) -> None:
        """Adds the rounds that an earlier run recorded with `as_json`."""
        if not recorded["error"]:
            self.rounds += map(_round, recorded["rounds"])

    def as_json(self) -> dict[str, Any]:
        figures = self.figures
        notes = (*self.contender.notes, self.contender.api.note)
        return {
            "name": self.contender.name,
            "precision": self.contender.precision,
            "versions": self.versions,
            "note": "; ".join(note for note in notes if note) or None,
            "error": self.error,
            "figures": asdict(figures) if figures else None,
            "rounds": [asdict(done) for done in self.rounds],
        }


@dataclass(frozen=True)
class RoundSettings:
    """Settings of all rounds."""

    models: SharedModels
    load: LoadShape
    workload: Workload
    bare: Any
    num_rounds: int
    num_clients: int
    num_threads: int
    masks: Mapping[str, Mapping[str, str]]
    """Variables that hide instruction sets from the programs of an environment."""


def run_rounds(
    results: Sequence[Result],
    plan: RoundSettings,
    progress: Callable[[str], None],
    save: Callable[[Sequence[BareFigures]], None],
) -> list[BareFigures]:
    """Runs the missing rounds of all contenders that have no error yet, and returns every run of the bare forward pass.

    Contenders that are far behind in the first round take no further turns. `save` is called after each turn.
    """
    bare = [_measure_bare(plan)]
    for number in range(1, plan.num_rounds + 1):
        for result in results:
            progress(f"round {number}: {result.contender.name}")
            if result.error or len(result.rounds) >= number or (number > 1 and not is_close(result, results)):
                continue
            turn = _take_turn(result, plan)
            bare.append(_measure_bare(plan))
            if turn:
                result.rounds.append(Round(mean_of(bare[-2:]), *turn))
            save(bare)
    return bare


def is_close(result: Result, results: Sequence[Result]) -> bool:
    """Whether a contender is ours, or in the first round came close to the best peer of its kind: float32 or less."""
    if result.contender.is_ours:
        return True
    is_reduced = result.contender.precision != "float32"
    peers = [one for one in results if one.rounds and not one.contender.is_ours]
    rivals = [one for one in peers if (one.contender.precision != "float32") == is_reduced]
    return _first_ratio(result) <= _CLOSE * min(map(_first_ratio, rivals))


def _first_ratio(result: Result) -> float:
    first = result.rounds[0]
    return _cpu_s(first) / first.bare.cpu_s_per_1k_pairs


def _measure_bare(plan: RoundSettings) -> BareFigures:
    return measure_bare(plan.bare, plan.workload, plan.load.bare_pairs)


def _round(recorded: dict[str, Any]) -> Round:
    """A round as `as_json` wrote it."""
    return Round(
        BareFigures(**recorded["bare"]),
        LoadFigures(**recorded["one_client"]),
        LoadFigures(**recorded["many_clients"]),
        SmallBehindBig(**recorded["small_behind_big"]),
        recorded["max_logit_error"],
    )


@contextmanager
def _server(contender: Contender, plan: RoundSettings) -> Iterator[Server]:
    launch = Launch(free_port(), plan.num_threads, plan.models)
    log = BENCH_FOLDER / "logs" / f"{contender.name}.log"
    command = contender.command(launch)
    command = replace(command, variables={**plan.masks.get(contender.environment, {}), **command.variables})
    with running(command, launch.port, plan.num_threads, log) as server:
        yield server


def _take_turn(result: Result, plan: RoundSettings) -> _Turn | None:
    """Runs one turn of a contender. An error ends the measurement of this contender, but not of the others."""
    try:
        with _server(result.contender, plan) as server:
            _warm_up(result.contender, server, plan)
            return _measure(result.contender, server, plan)
    except (StartFailed, OSError, RuntimeError, ValueError) as error:
        result.error = f"round {len(result.rounds) + 1}: {error}"
        return None


def _warm_up(contender: Contender, server: Server, plan: RoundSettings) -> None:
    requests = _requests(contender, plan.workload)[:_WARM_UP_REQUESTS]
    _, run = measure_load(server.url + contender.api.path, requests, 1)
    _max_logit_error(contender, plan.workload, run)


def _measure(contender: Contender, server: Server, plan: RoundSettings) -> _Turn:
    url = server.url + contender.api.path
    requests = _requests(contender, plan.workload)
    one, one_run = measure_load(url, requests[: -(-len(requests) // _ONE_CLIENT_SHARE)], 1, server.pid)
    many, many_run = measure_load(url, requests, plan.num_clients, server.pid)
    big, small = (_request_of(contender, plan.workload, count) for count in (plan.load.big_passages, 1))
    errors = [_max_logit_error(contender, plan.workload, run) for run in (one_run, many_run)]
    return one, many, asyncio.run(probe_small_behind_big(url, big, small)), max(errors)


def _requests(contender: Contender, workload: Workload) -> list[PreparedRequest]:
    return [contender.api.request(workload.query, passages, **contender.fields) for passages in workload.requests]


def _request_of(contender: Contender, workload: Workload, num_passages: int) -> PreparedRequest:
    """A request with passages of the workload, repeated if there are too few. A number makes each passage unique."""
    passages = [passage for request in workload.requests for passage in request]
    chosen = [f"{index} {passages[index % len(passages)]}" for index in range(num_passages)]
    return contender.api.request(workload.query, chosen, **contender.fields)


def _max_logit_error(contender: Contender, workload: Workload, run: LoadRun) -> float:
    """Largest difference from the logits of float32 transformers. Raises `RuntimeError` if no request was answered."""
    sent = zip(run.answers, workload.logits, strict=False)  # a warm-up sends only the first requests
    answered = [(answer, logits) for answer, logits in sent if answer.is_ok]
    if not answered:
        raise RuntimeError(f"no request was answered: {run.failures}; {run.answers[0].body[:200]!r}")
    return max(
        float(np.abs(contender.api.logits(answer.body, answer.num_passages) - logits).max())
        for answer, logits in answered
    )


def _cpu_s(done: Round) -> float:
    return _known(done.many_clients.cpu_s_per_1k_passages)


def _known(value: float | None) -> float:
    if value is None:
        raise RuntimeError("a round without an answered request was kept")
    return value


def _failures(rounds: Sequence[Round]) -> dict[str, int]:
    failures: dict[str, int] = {}
    for done in rounds:
        for figures in (done.one_client, done.many_clients):
            for status, count in figures.failures.items():
                failures[status] = failures.get(status, 0) + count
    return failures
