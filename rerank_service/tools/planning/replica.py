"""A simulated replica: the service's own fair queue, admission and batch sizes around a device of a given speed.

The replica follows the rules of `replica.scheduler.loop`, on a virtual clock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rerank_service.config import BatchingConfig
from rerank_service.replica.scheduler.admission import Admission, DrainRate, batch_budget, may_launch
from rerank_service.replica.scheduler.fair_queue import Drawn, FairQueue, TokensDue
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.speed import ReplicaSpeed

__all__ = ["SimulatedReplica", "SimulatedShard"]

_MAX_QUEUED_TOKENS = BatchingConfig().max_queued_tokens


@dataclass(eq=False, slots=True)
class SimulatedShard:
    """A shard submitted to a simulated replica."""

    request_id: str
    owner: Any
    lengths: Sequence[int]
    caller: str = ""
    num_tokens: int = field(init=False)
    num_open: int = field(init=False)
    """Number of pairs that are not scored yet."""
    started_at_s: float | None = None

    def __post_init__(self) -> None:
        self.num_tokens = sum(self.lengths)
        self.num_open = len(self.lengths)


class SimulatedReplica:
    """Scores shards and calls `on_done` with each finished shard."""

    def __init__(self, clock: Clock, speed: ReplicaSpeed, on_done: Callable[[SimulatedShard], None]) -> None:
        self._clock = clock
        self._speed = speed
        self._on_done = on_done
        self._queue: FairQueue[SimulatedShard] = FairQueue()
        self._drain = DrainRate()
        self._admission = Admission(self._queue, self._drain, _MAX_QUEUED_TOKENS)
        self._num_in_flight = 0
        self._tokens_in_flight = 0
        self._free_at_s = 0.0
        self.busy_s = 0.0

    @property
    def outstanding_tokens(self) -> int:
        """Tokens queued or on the device."""
        return self._queue.num_tokens + self._tokens_in_flight

    @property
    def retry_after_s(self) -> float:
        """Value of `Retry-After` for a refused request."""
        return float(self._drain.seconds_for(self.outstanding_tokens // 2))

    @property
    def drained_per_s(self) -> float:
        """Recent throughput in tokens per second; 0 before the first batch."""
        return self._drain.tokens_per_s or 0.0

    def submit(self, shard: SimulatedShard, deadline_s: float) -> bool:
        """Queues a shard. Returns false if the queue is full or the shard cannot meet its deadline."""
        newcomer = TokensDue(deadline_s, shard.num_tokens)
        if self._admission.refusal(
            newcomer, self._tokens_in_flight, self._budget_tokens, self._clock.now_s, shard.caller
        ):
            return False
        self._queue.add(shard.request_id, shard, shard.lengths, deadline_s, shard.caller)
        self._launch()
        return True

    def discard(self, shard: SimulatedShard) -> None:
        """Removes a shard from the queue; its batches on the device continue."""
        self._queue.discard(shard.request_id, shard)

    @property
    def _budget_tokens(self) -> int:
        queue, speed = self._queue, self._speed
        return batch_budget(queue.num_tokens, queue.num_pairs, speed.min_batch_tokens, speed.max_batch_tokens)

    def _launch(self) -> None:
        while may_launch(self._num_in_flight, self._speed.max_in_flight, self._queue.num_tokens, self._budget_tokens):
            now_s, rate = self._clock.now_s, self._drain.tokens_per_s
            starts_s = now_s + self._tokens_in_flight / rate if rate else now_s
            batch = self._queue.take(self._budget_tokens, starts_s, rate)
            for drawn in batch:
                if drawn.job.started_at_s is None:
                    drawn.job.started_at_s = now_s
            num_tokens = sum(drawn.num_tokens for drawn in batch)
            took_s = self._speed.batch_overhead_s + num_tokens / self._speed.tokens_per_s
            self._num_in_flight += 1
            self._tokens_in_flight += num_tokens
            self.busy_s += took_s
            self._free_at_s = max(self._free_at_s, now_s) + took_s
            self._clock.at(self._free_at_s, self._finish, batch, num_tokens)

    def _finish(self, batch: Sequence[Drawn[SimulatedShard]], num_tokens: int) -> None:
        now_s = self._clock.now_s
        self._num_in_flight -= 1
        self._tokens_in_flight -= num_tokens
        self._drain.add(num_tokens, min(drawn.job.started_at_s or 0.0 for drawn in batch), now_s)
        for drawn in batch:
            drawn.job.num_open -= 1
            if drawn.job.num_open == 0:
                self._on_done(drawn.job)
        self._launch()
