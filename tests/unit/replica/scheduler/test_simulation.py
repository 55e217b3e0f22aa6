"""The fair queue under thousands of seeded arrival patterns, with a virtual clock and a simulated device.

A batch takes `OVERHEAD_S + tokens / TOKENS_PER_S`. All times are computed, not measured.
"""

import heapq
import random
from dataclasses import dataclass, field

import pytest

from rerank_service.replica.scheduler import FairQueue

BUDGET = 4096
TOKENS_PER_S = 10_000
OVERHEAD_S = 0.005


@dataclass
class Request:
    """One request: its arrival, the lengths of its pairs, and when it is cancelled."""

    name: str
    arrival_s: float
    lengths: list[int]
    cancel_s: float | None = None
    scored: list[int] = field(default_factory=list)
    done_s: float | None = None

    @property
    def is_done(self) -> bool:
        return len(self.scored) == len(self.lengths)


class Simulation:
    """Feeds arrivals and cancellations to the queue at their times, and runs the device."""

    def __init__(self, requests: list[Request]) -> None:
        self.queue: FairQueue[str] = FairQueue()
        self.requests = {request.name: request for request in requests}
        self.now_s = 0.0
        self.batches: list[int] = []
        self.idle_while_pending = 0
        self._cancelled: set[str] = set()
        self._events = [(r.arrival_s, 0, r.name) for r in requests]
        self._events += [(r.cancel_s, 1, r.name) for r in requests if r.cancel_s is not None]
        heapq.heapify(self._events)

    def run(self) -> None:
        while self._events or self.queue:
            if not self.queue:
                self.now_s = max(self.now_s, self._events[0][0])
            self._deliver_events()
            batch = self.queue.take(BUDGET)
            if batch:
                self._forward([(drawn.job, drawn.position) for drawn in batch])
            else:
                self.idle_while_pending += bool(self.queue)

    def _deliver_events(self) -> None:
        while self._events and self._events[0][0] <= self.now_s:
            _, is_cancellation, name = heapq.heappop(self._events)
            if is_cancellation:
                self.queue.discard(name, name)
                self._cancelled.add(name)
            else:
                self.queue.add(name, name, self.requests[name].lengths)

    def _forward(self, batch: list[tuple[str, int]]) -> None:
        tokens = sum(self.requests[name].lengths[position] for name, position in batch)
        self.batches.append(tokens)
        assert tokens <= BUDGET or len(batch) == 1
        assert not self._cancelled & {name for name, _ in batch}
        self.now_s += OVERHEAD_S + tokens / TOKENS_PER_S
        for name, position in batch:
            request = self.requests[name]
            request.scored.append(position)
            if request.is_done:
                request.done_s = self.now_s


def random_requests(rng: random.Random) -> list[Request]:
    """Bursts of small, medium and huge requests. Some have pairs over the budget, and some are cancelled."""
    requests = []
    for number in range(rng.randint(1, 25)):
        size = rng.choice([1, 1, 3, 10, 40, rng.randint(100, 512)])
        longest = rng.choice([60, 200, 512, 5000])
        arrival_s = rng.choice([0.0, rng.uniform(0, 5)])
        cancel_s = arrival_s + rng.uniform(0, 3) if rng.random() < 0.2 else None
        lengths = [rng.randint(8, longest) for _ in range(size)]
        requests.append(Request(f"r{number}", arrival_s, lengths, cancel_s))
    return requests


@pytest.mark.parametrize("block", range(10))
def test_no_pair_is_lost_or_doubled_and_no_device_idles_while_pairs_are_queued(block: int) -> None:
    for seed in range(block * 200, (block + 1) * 200):
        simulation = Simulation(random_requests(random.Random(seed)))
        simulation.run()

        assert simulation.idle_while_pending == 0, seed
        assert not simulation.queue, seed
        for request in simulation.requests.values():
            assert request.scored == sorted(set(request.scored)), seed
            assert request.is_done or request.cancel_s is not None, seed


@pytest.mark.parametrize("num_rivals", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 10])
def test_a_small_request_waits_for_one_batch_and_its_fair_share(num_rivals: int, size: int) -> None:
    for seed in range(100):
        rng = random.Random(seed)
        rivals = [Request(f"big {n}", 0.0, [rng.randint(64, 256) for _ in range(512)]) for n in range(num_rivals)]
        small = Request("small", rng.uniform(0.5, 3.0), [rng.randint(64, 256) for _ in range(size)])
        simulation = Simulation([*rivals, small])
        simulation.run()

        assert small.done_s is not None
        one_batch_s = OVERHEAD_S + BUDGET / TOKENS_PER_S
        num_batches = -(-sum(small.lengths) * (num_rivals + 1) // BUDGET) + 1  # its share, and the running batch
        assert small.done_s - small.arrival_s <= (num_batches + 1) * one_batch_s, seed


def test_a_passage_behind_300_others_waits_for_a_small_part_of_their_time() -> None:
    """In every other server that we measured, a single passage waits for 93 to 99% of the large request's time."""
    big = Request("big", 0.0, [128] * 300)
    small = Request("small", 0.01, [128])
    Simulation([big, small]).run()

    assert small.done_s is not None
    assert big.done_s is not None
    assert (small.done_s - small.arrival_s) / big.done_s < 0.25
