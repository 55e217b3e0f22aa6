"""Batch sizes and the drain rate."""

import pytest

from rerank_service.replica.scheduler.admission import DrainRate, batch_budget, may_launch


@pytest.mark.parametrize(
    ("queued", "budget"), [(0, 1024), (1024 * 24, 1024), (2048 * 24, 2048), (4096 * 24, 4096), (10**9, 4096)]
)
def test_a_batch_is_a_small_share_of_the_queue(queued: int, budget: int) -> None:
    assert batch_budget(queued, 1024, 4096) == budget
    assert batch_budget(queued, None, 4096) == 4096


def test_an_idle_device_gets_anything_and_a_busy_one_a_full_batch() -> None:
    assert may_launch(0, 2, queued_tokens=1, budget_tokens=1024)
    assert not may_launch(0, 2, queued_tokens=0, budget_tokens=1024)
    assert may_launch(1, 2, queued_tokens=1024, budget_tokens=1024)
    assert not may_launch(1, 2, queued_tokens=1023, budget_tokens=1024)
    assert not may_launch(2, 2, queued_tokens=10**6, budget_tokens=1024)


def test_idle_time_does_not_lower_the_drain_rate() -> None:
    drain = DrainRate()
    drain.add(1000, started_at_s=0.0, now_s=1.0)
    drain.add(1000, started_at_s=50.0, now_s=51.0)

    assert drain.tokens_per_s == pytest.approx(1000)
    assert drain.seconds_for(3_500) == 4


def test_a_batch_launched_behind_another_counts_from_the_end_of_that() -> None:
    drain = DrainRate()
    drain.add(1000, started_at_s=0.0, now_s=1.0)
    drain.add(1000, started_at_s=0.0, now_s=2.0)

    assert drain.tokens_per_s == pytest.approx(1000)


def test_with_an_unknown_speed_clients_retry_after_a_second() -> None:
    assert DrainRate().seconds_for(10**9) == 1
