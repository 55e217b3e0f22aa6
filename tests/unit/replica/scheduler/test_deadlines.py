"""Admission and order by deadline, calculated directly and on a simulated device."""

import math
import random
from dataclasses import dataclass

import pytest

from rerank_service.errors import WaitTooLong
from rerank_service.replica.scheduler.admission import lateness
from rerank_service.replica.scheduler.fair_queue import FairQueue, TokensDue, urgent

SPEED = 1000.0
BUDGET = 100


def test_a_newcomer_must_be_done_within_a_share_of_its_time() -> None:
    queue = [TokensDue(10.0, 3000)]

    assert lateness(TokensDue(10.0, 4000), queue, 1000, 0.0, SPEED) is None  # done after 8 of 10 s
    assert lateness(TokensDue(10.0, 4001), queue, 1000, 0.0, SPEED)
    assert lateness(TokensDue(10.0, 4000), queue, 1000, 0.1, SPEED)


def test_a_newcomer_with_an_early_deadline_overtakes_later_ones() -> None:
    queue = [TokensDue(60.0, 30_000)]

    assert lateness(TokensDue(1.0, 500), queue, 0, 0.0, SPEED) is None
    assert lateness(TokensDue(1.0, 500), queue, 301, 0.0, SPEED)  # a running batch is not interrupted


def test_a_newcomer_must_not_make_another_request_late() -> None:
    queue = [TokensDue(10.0, 8500)]

    assert lateness(TokensDue(5.0, 500), queue, 0, 0.0, SPEED) is None
    assert lateness(TokensDue(5.0, 501), queue, 0, 0.0, SPEED)


def test_a_refusal_states_the_figures_behind_it() -> None:
    own = lateness(TokensDue(60.0, 45_300), [TokensDue(60.0, 3000)], 1000, 0.0, SPEED)
    another = lateness(TokensDue(5.0, 1000), [TokensDue(10.0, 8500)], 0, 0.0, SPEED)

    assert own == pytest.approx((49.3, 60.0, 12.0, False))
    assert another == pytest.approx((9.5, 10.0, 1.0, True))
    assert str(WaitTooLong(*own, 7)) == (
        "The backlog is too long: this request would take an estimated 49.3 s. The time left until its "
        "deadline is 60 s, of which 12 s is reserved in case the device slows down; retry after 7 s"
    )
    assert str(WaitTooLong(*another, 7)) == (
        "The backlog is too long: accepting this request would make an earlier request take an estimated 9.5 s. "
        "The time left until its deadline is 10 s, of which 1 s is reserved in case the device slows down; "
        "retry after 7 s"
    )


def test_a_request_already_late_does_not_block_newcomers() -> None:
    assert lateness(TokensDue(5.0, 1000), [TokensDue(10.0, 20_000)], 0, 0.0, SPEED) is None


def test_any_request_without_a_deadline_is_accepted() -> None:
    assert lateness(TokensDue(math.inf, 10**9), [TokensDue(math.inf, 10**9)], 10**6, 0.0, SPEED) is None
    assert urgent([TokensDue(math.inf, 10**9)], 0, 0.0, SPEED) == []


def test_no_request_is_urgent_while_there_is_time() -> None:
    assert urgent([TokensDue(2.0, 1000), TokensDue(10.0, 5000)], 0, 0.0, SPEED) == []


def test_all_requests_up_to_the_tightest_deadline_are_urgent() -> None:
    requests = [TokensDue(9.0, 1000), TokensDue(10.0, 8500), TokensDue(60.0, 1000)]

    assert urgent(requests, 0, 0.0, SPEED) == requests[:2]


def test_if_not_all_requests_can_be_in_time_the_longest_is_given_up() -> None:
    requests = [TokensDue(5.0, 9000), TokensDue(5.0, 2000), TokensDue(5.0, 2600)]

    assert urgent(requests, 0, 0.0, SPEED) == requests[1:]


@dataclass
class Accepted:
    deadline_s: float
    num_tokens: int
    left: int


@pytest.mark.parametrize("max_in_flight", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_under_triple_load_accepted_requests_are_in_time_and_fill_the_device(seed: int, max_in_flight: int) -> None:
    """Request sizes are skewed, deadlines are 2 and 8 s, and the device scores exactly 1,000 tokens per second. With
    two batches in flight, the next batch is chosen when the last one starts.
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
            newcomer = TokensDue(next_s + rng.choice([2.0, 8.0]), sum(lengths))
            busy = int(max(0.0, free_s - next_s) * SPEED) + BUDGET
            if lateness(newcomer, queue.requests, busy, next_s, SPEED) is None:
                queue.add(str(number), number, lengths, newcomer.deadline_s)
                accepted[number] = Accepted(newcomer.deadline_s, newcomer.num_tokens, len(lengths))
            number += 1
            next_s += rng.expovariate(1.0) * newcomer.num_tokens / (3 * SPEED)
    assert len(accepted) < number
    assert in_time >= 0.9 * 60.0 * SPEED
