"""Admission and order by deadline, with a clock and a device of the test's own."""

import math
import random
from dataclasses import dataclass

import pytest

from rerank_service.errors import WaitTooLong
from rerank_service.replica.scheduler.deadlines import Demand, lateness, urgent
from rerank_service.replica.scheduler.fair_queue import FairQueue

SPEED = 1000.0
BUDGET = 100


def test_a_newcomer_must_fit_into_its_own_time_with_a_margin() -> None:
    queue = [Demand(10.0, 3000)]

    assert lateness(Demand(10.0, 4000), queue, 1000, 0.0, SPEED) is None  # done after 8 of 10 s
    assert lateness(Demand(10.0, 4001), queue, 1000, 0.0, SPEED)
    assert lateness(Demand(10.0, 4000), queue, 1000, 0.1, SPEED)


def test_a_newcomer_in_a_hurry_overtakes_those_who_have_time() -> None:
    queue = [Demand(60.0, 30_000)]

    assert lateness(Demand(1.0, 500), queue, 0, 0.0, SPEED) is None
    assert lateness(Demand(1.0, 500), queue, 301, 0.0, SPEED)  # what runs already is not taken back


def test_a_newcomer_must_not_cost_anybody_the_deadline() -> None:
    queue = [Demand(10.0, 8500)]

    assert lateness(Demand(5.0, 500), queue, 0, 0.0, SPEED) is None
    assert lateness(Demand(5.0, 501), queue, 0, 0.0, SPEED)


def test_a_refusal_tells_the_numbers_that_decided() -> None:
    own = lateness(Demand(60.0, 45_300), [Demand(60.0, 3000)], 1000, 0.0, SPEED)
    another = lateness(Demand(5.0, 1000), [Demand(10.0, 8500)], 0, 0.0, SPEED)

    assert own == pytest.approx((49.3, 60.0, 12.0, False))
    assert another == pytest.approx((9.5, 10.0, 1.0, True))
    assert str(WaitTooLong(*own, 7)) == (
        "The backlog is too long: this request would take an estimated 49.3 s. Its deadline is in 60 s, of which 12 s "
        "are kept in reserve in case the device slows down; retry after 7 s"
    )
    assert str(WaitTooLong(*another, 7)) == (
        "The backlog is too long: accepting this request would make an earlier one take an estimated 9.5 s. Its "
        "deadline is in 10 s, of which 1 s are kept in reserve in case the device slows down; retry after 7 s"
    )


def test_who_is_late_anyway_keeps_nobody_out() -> None:
    assert lateness(Demand(5.0, 1000), [Demand(10.0, 20_000)], 0, 0.0, SPEED) is None


def test_without_a_deadline_anything_fits() -> None:
    assert lateness(Demand(math.inf, 10**9), [Demand(math.inf, 10**9)], 10**6, 0.0, SPEED) is None
    assert urgent([Demand(math.inf, 10**9)], 0, 0.0, SPEED) == []


def test_nobody_is_urgent_while_there_is_time() -> None:
    assert urgent([Demand(2.0, 1000), Demand(10.0, 5000)], 0, 0.0, SPEED) == []


def test_all_up_to_the_tightest_deadline_are_urgent() -> None:
    assert urgent([Demand(9.0, 1000), Demand(10.0, 8500), Demand(60.0, 1000)], 0, 0.0, SPEED) == [0, 1]


def test_where_not_all_can_be_in_time_the_longest_is_given_up() -> None:
    assert urgent([Demand(5.0, 9000), Demand(5.0, 2000), Demand(5.0, 2600)], 0, 0.0, SPEED) == [1, 2]


@dataclass
class Accepted:
    deadline_s: float
    num_tokens: int
    left: int


@pytest.mark.parametrize("max_in_flight", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_under_three_times_the_load_the_device_works_for_answers_that_come_in_time(
    seed: int, max_in_flight: int
) -> None:
    """Skewed sizes, deadlines of 2 and 8 s; batches take what the queue gives. The device's true speed is 1,000.

    With two in flight the next batch is chosen when the last one begins.
    """
    rng = random.Random(seed)
    queue: FairQueue[int] = FairQueue()
    accepted: dict[int, Accepted] = {}
    now_s, free_s, next_s, in_time = 0.0, 0.0, 0.0, 0
    number = 0
    while now_s < 60.0:
        start_s = max(now_s, free_s)
        batch = queue.take(BUDGET, start_s, SPEED)
        free_s = start_s + sum(drawn.num_tokens for drawn in batch) / SPEED
        for drawn in batch:
            request = accepted[drawn.job]
            request.left -= 1
            if request.left == 0:
                assert free_s <= request.deadline_s, "accepted, and late"
                in_time += request.num_tokens
        now_s = (free_s if max_in_flight == 1 else start_s) if batch else next_s
        while next_s <= now_s:
            lengths = [rng.randint(5, 40) for _ in range(rng.choice([1, 2, 5, 20, 60]))]
            newcomer = Demand(next_s + rng.choice([2.0, 8.0]), sum(lengths))
            busy = int(max(0.0, free_s - next_s) * SPEED) + BUDGET
            if lateness(newcomer, queue.demands, busy, next_s, SPEED) is None:
                queue.add(str(number), number, lengths, newcomer.deadline_s)
                accepted[number] = Accepted(newcomer.deadline_s, newcomer.num_tokens, len(lengths))
            number += 1
            next_s += rng.expovariate(1.0) * newcomer.num_tokens / (3 * SPEED)
    assert len(accepted) < number
    assert in_time >= 0.9 * 60.0 * SPEED
