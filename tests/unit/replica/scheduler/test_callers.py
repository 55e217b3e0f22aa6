"""One caller against another on a simulated replica, in virtual time: a share each, however many requests they have."""

import random

import pytest

from benchmarks.callers import SCENARIOS, Scenario, simulate
from rerank_service.replica.scheduler import FairQueue
from rerank_service.replica.scheduler.admission import Admission, DrainRate
from rerank_service.replica.scheduler.fair_queue import TokensDue
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.replica import SimulatedReplica, SimulatedShard
from rerank_service.tools.planning.speed import ReplicaSpeed

SPEED = ReplicaSpeed(10_000.0, max_in_flight=1, max_batch_tokens=1_000)
BATCH_S = SPEED.max_batch_tokens / SPEED.tokens_per_s


class Contest:
    """A device that callers send requests to."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.replica = SimulatedReplica(self.clock, SPEED, self._done)
        self.waited_s: dict[str, list[float]] = {}
        self.refused: dict[str, int] = {}
        self.late: dict[str, int] = {}
        self._number = 0

    def send(self, at_s: float, caller: str, lengths: list[int], timeout_s: float = 60.0) -> None:
        self.clock.at(at_s, self._send, caller, lengths, timeout_s)

    def _send(self, caller: str, lengths: list[int], timeout_s: float) -> None:
        now_s = self.clock.now_s
        self._number += 1
        job = SimulatedShard(str(self._number), (now_s, now_s + timeout_s), lengths, caller)
        if not self.replica.submit(job, now_s + timeout_s):
            self.refused[caller] = self.refused.get(caller, 0) + 1

    def _done(self, job: SimulatedShard) -> None:
        sent_s, deadline_s = job.owner
        self.waited_s.setdefault(job.caller, []).append(self.clock.now_s - sent_s)
        self.late[job.caller] = self.late.get(job.caller, 0) + (self.clock.now_s > deadline_s)


def waits(lengths: list[int], at_s: float, num_rivals: int, rival: list[int], timeout_s: float = 60.0) -> float:
    """How long a request sent at `at_s` takes, behind so many of another caller's that all came at once."""
    contest = Contest()
    contest.send(0.0, "warm", [100] * 10)  # the speed is known
    for _ in range(num_rivals):
        contest.send(1.0, "rival", rival, timeout_s)
    contest.send(at_s, "me", lengths)
    contest.clock.run()
    (waited_s,) = contest.waited_s["me"]
    return waited_s


@pytest.mark.parametrize("rival", [[100], [100] * 20, [250] * 8], ids=["small", "middling", "long pairs"])
@pytest.mark.parametrize("num_pairs", [1, 10, 200])
def test_two_hundred_requests_of_one_caller_at_most_double_anothers_wait(num_pairs: int, rival: list[int]) -> None:
    """And one batch that is running, and the batch that both share."""
    alone_s = waits([100] * num_pairs, 1.05, 0, rival)
    behind_s = waits([100] * num_pairs, 1.05, 200, rival)

    assert behind_s <= 2 * alone_s + 2 * BATCH_S


@pytest.mark.parametrize("at_s", [1.05, 3.0, 10.0, 20.0, 29.0, 33.0])
def test_nor_do_their_deadlines(at_s: float) -> None:
    """All that can be promised for 40 s is taken from the rival, so that from some moment on all of it is urgent."""
    alone_s = waits([100] * 10, at_s, 0, [])

    assert waits([100] * 10, at_s, 200, [100] * 16, timeout_s=40.0) <= 2 * alone_s + 2 * BATCH_S


@pytest.mark.parametrize("timeout_s", [60.0, 8.0])
def test_a_flood_of_one_caller_has_hardly_a_request_of_another_refused(timeout_s: float) -> None:
    """Three times what the device can do, for 200 s. Before callers were told apart, 5 and 8 of the 390 were refused,
    and half of the others waited for 59.3 of 60 s and for 7.6 of 8 s."""
    rng = random.Random(0)
    contest, at_s = Contest(), 0.0
    while at_s < 200.0:
        lengths = [rng.randint(50, 400) for _ in range(rng.choice([1, 2, 5, 20, 60]))]
        contest.send(at_s, "flood", lengths, timeout_s)
        at_s += rng.expovariate(1.0) * sum(lengths) / (3 * SPEED.tokens_per_s)
    for number in range(390):
        contest.send(0.5 + number / 2, "me", [200] * 5, timeout_s)
    contest.clock.run()

    assert contest.refused["flood"] > 100
    assert contest.refused.get("me", 0) <= 1
    assert contest.late["me"] == 0
    waited_s = sorted(contest.waited_s["me"])
    assert waited_s[len(waited_s) // 2] <= 3 * 0.1 + 2 * BATCH_S
    assert waited_s[-1] <= (2 * 0.1 + 2 * BATCH_S if timeout_s == 60.0 else timeout_s / 2)  # urgent work goes before


def test_a_full_queue_has_room_for_a_caller_with_little_in_it() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(9):
        queue.add(str(number), number, [100] * 10, caller="flood")
    admission = Admission(queue, DrainRate(), 9_000)

    assert admission.refusal(TokensDue(60.0, 1_000), 0, 100, 0.0, "flood") is not None
    assert admission.refusal(TokensDue(60.0, 1_000), 0, 100, 0.0, "me") is None
    assert admission.refusal(TokensDue(60.0, 4_501), 0, 100, 0.0, "me") is not None  # more than half of the bound
    for number in range(9, 18):
        queue.add(str(number), number, [100] * 10, caller=f"caller {number}")
    assert admission.refusal(TokensDue(60.0, 100), 0, 100, 0.0, "me") is not None  # twice the bound, and no more


@pytest.mark.parametrize("scenario", SCENARIOS[:8], ids=lambda scenario: scenario.name)
def test_what_is_accepted_is_in_time_whoever_else_sends(scenario: Scenario) -> None:
    outcome = simulate(scenario, (2.0, 8.0), max_in_flight=1, seed=0)

    assert outcome.late_tokens <= 0.005
    assert outcome.goodput >= 0.85


def test_a_callers_own_requests_share_its_share() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(4):
        queue.add(f"a {number}", f"a {number}", [10] * 100, caller="a")
    queue.add("b", "b", [10] * 100, caller="b")

    drawn = [one.job for one in queue.take(800)]

    assert drawn.count("b") == 40
    assert [drawn.count(f"a {number}") for number in range(4)] == [10] * 4
