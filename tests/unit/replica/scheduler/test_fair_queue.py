"""The queue under thousands of generated arrival patterns: fairness, token budget and counts."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_service.replica.scheduler import FairQueue


def drain(queue: FairQueue[str], max_tokens: int) -> list[list[str]]:
    """The jobs of each batch until the queue is empty."""
    batches = []
    while queue:
        batches.append([drawn.job for drawn in queue.take(max_tokens)])
    return batches


def test_pairs_of_a_job_are_drawn_in_order() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("r", "job", [10, 20, 30, 40])

    assert [drawn.position for drawn in queue.take(60)] == [0, 1, 2]
    assert [drawn.position for drawn in queue.take(60)] == [3]
    assert queue.take(60) == []
    assert (queue.num_pairs, queue.num_tokens) == (0, 0)


def test_a_small_request_does_not_wait_for_a_large_one() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("large", "large", [100] * 512)
    queue.take(1600)  # the large request has started
    queue.add("small", "small", [100] * 10)

    first, second = queue.take(1600), queue.take(1600)

    drawn = Counter(drawn.job for drawn in first + second)
    assert drawn["small"] == 10
    assert Counter(drawn.job for drawn in first)["small"] >= 8


def test_requests_share_by_tokens_not_by_pairs() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("long", "long", [400] * 100)
    queue.add("short", "short", [100] * 400)

    served: Counter[str] = Counter()
    for _ in range(5):
        for drawn in queue.take(1600):
            served[drawn.job] += 400 if drawn.job == "long" else 100

    assert abs(served["long"] - served["short"]) <= 400


def test_shards_of_one_request_count_as_one() -> None:
    queue: FairQueue[str] = FairQueue()
    for shard in range(8):
        queue.add("cut in eight", f"shard {shard}", [100] * 50)
    queue.add("whole", "whole", [100] * 50)

    jobs = Counter(drawn.job for drawn in queue.take(2000))

    assert jobs["whole"] == 10


def test_newcomers_do_not_starve_older_requests() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("old", "old", [100] * 50)
    queue.take(1000)
    for number in range(20):
        queue.add(f"new {number}", "new", [100])

    jobs = [drawn.job for batch in (queue.take(1000), queue.take(1000), queue.take(1000)) for drawn in batch]

    assert jobs.count("new") == 20
    assert jobs.count("old") >= 10


def test_a_pair_over_the_budget_is_drawn_alone() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("r", "job", [5000, 10, 10])

    assert len(queue.take(1000)) == 1
    assert len(queue.take(1000)) == 2


def test_a_gap_is_filled_by_a_pair_that_fits() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("a", "a", [700, 700])
    queue.add("b", "b", [300, 300])

    assert sorted(drawn.job for drawn in queue.take(1000)) == ["a", "b"]


def test_discarding_drops_the_queued_pairs_of_one_job() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("r", "gone", [10] * 5)
    queue.add("r", "kept", [10] * 3)
    queue.add("s", "other", [10] * 2)
    queue.take(20)

    assert queue.discard("r", "gone") in (3, 4)
    assert queue.discard("r", "gone") == 0
    assert queue.discard("unknown", "gone") == 0
    left = Counter(job for batch in drain(queue, 1000) for job in batch)
    assert left["gone"] == 0
    assert left["kept"] == 3
    assert (queue.num_pairs, queue.num_tokens) == (0, 0)


operation = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 5), st.lists(st.integers(1, 900), min_size=1, max_size=30)),
    st.tuples(st.just("take"), st.integers(100, 1500), st.none()),
    st.tuples(st.just("discard"), st.integers(0, 30), st.none()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(operation, max_size=60))
def test_no_pair_is_lost_or_doubled_and_no_batch_is_over_budget(operations: list[tuple]) -> None:
    queue: FairQueue[int] = FairQueue()
    lengths: dict[int, list[int]] = {}
    requests: dict[int, str] = {}
    seen: Counter[tuple[int, int]] = Counter()
    discarded = 0

    def take(budget: int) -> None:
        batch = queue.take(budget)
        assert bool(batch) or not queue
        num_tokens = sum(lengths[drawn.job][drawn.position] for drawn in batch)
        assert num_tokens <= budget or len(batch) == 1
        seen.update((drawn.job, drawn.position) for drawn in batch)

    for name, number, sizes in operations:
        if name == "add":
            job = len(lengths)
            lengths[job], requests[job] = sizes, f"request {number}"
            queue.add(requests[job], job, sizes)
        elif name == "take":
            take(number)
        elif number in lengths:
            discarded += queue.discard(requests[number], number)
    while queue:
        take(1000)

    assert all(count == 1 for count in seen.values())
    assert len(seen) + discarded == sum(map(len, lengths.values()))
    assert (queue.num_pairs, queue.num_tokens) == (0, 0)


@pytest.mark.parametrize("num_rivals", [1, 3, 10])
def test_a_small_request_behind_large_ones_gets_its_fair_share(num_rivals: int) -> None:
    """Before a request of 10 passages is done, its rivals get at most equal shares, plus one batch."""
    queue: FairQueue[str] = FairQueue()
    for rival in range(num_rivals):
        queue.add(f"rival {rival}", "rival", [128] * 512)
    queue.take(4096)
    queue.add("small", "small", [128] * 10)

    served, small = 0, 0
    while small < 10:
        batch = queue.take(4096)
        served += len(batch)
        small += sum(drawn.job == "small" for drawn in batch)

    assert served <= 10 * (num_rivals + 1) + 4096 // 128
