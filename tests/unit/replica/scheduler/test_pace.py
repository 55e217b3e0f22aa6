"""Batch sizes and speeds, as pure arithmetic."""

import pytest

from rerank_service.replica.scheduler.admission import DrainRate, batch_budget, may_launch


@pytest.mark.parametrize(
    ("queued", "budget"), [(0, 1024), (1024 * 24, 1024), (2048 * 24, 2048), (4096 * 24, 4096), (10**9, 4096)]
)
def test_a_batch_is_a_small_share_of_what_waits(queued: int, budget: int) -> None:
    assert batch_budget(queued, 1024, 4096) == budget
    assert batch_budget(queued, None, 4096) == 4096


def test_a_free_device_takes_anything_and_a_busy_one_a_full_batch() -> None:
    assert may_launch(0, 2, queued_tokens=1, budget_tokens=1024)
    assert not may_launch(0, 2, queued_tokens=0, budget_tokens=1024)
    assert may_launch(1, 2, queued_tokens=1024, budget_tokens=1024)
    assert not may_launch(1, 2, queued_tokens=1023, budget_tokens=1024)
    assert not may_launch(2, 2, queued_tokens=10**6, budget_tokens=1024)


def test_time_without_work_does_not_make_a_device_slow() -> None:
    drain = DrainRate()
    drain.add(1000, started_at_s=0.0, now_s=1.0)
    drain.add(1000, started_at_s=50.0, now_s=51.0)

    assert drain.tokens_per_s == pytest.approx(1000)
    assert drain.seconds_for(3_500) == 4


def test_a_batch_that_began_behind_another_counts_from_its_end() -> None:
    drain = DrainRate()
    drain.add(1000, started_at_s=0.0, now_s=1.0)
    drain.add(1000, started_at_s=0.0, now_s=2.0)

    assert drain.tokens_per_s == pytest.approx(1000)


def test_nothing_known_is_a_second() -> None:
    assert DrainRate().seconds_for(10**9) == 1
