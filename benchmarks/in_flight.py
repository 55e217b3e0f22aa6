"""Share of the time in which a GPU runs kernels, with one and with two batches in flight, simulated.

    python -m benchmarks.in_flight

The service's own scheduler runs on a virtual clock. The device and the launching thread are simulated, with the times
below. All of them are estimates (docs/appendix/gpu.md), so the result is no measurement: it shows whether the scheduler
hides the time that the host needs. `benchmarks/gpu.py` measures the gap between launches on a GPU.
"""

import asyncio
import selectors
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from rerank_service.engine.protocol import EncodedPair
from rerank_service.replica.scheduler import Scheduler

__all__ = ["COSTS", "PassCost", "busy_share", "graphed"]

_LAYERS = 16
_LAUNCH_S = 8e-6
"""Host time to launch a kernel from Python. Estimate: 5 to 10 microseconds."""
_GUARDS_S = 50e-6
"""Host time to enter a compiled layer. Estimate."""
_GRAPH_S = 100e-6
"""Host time to fill the inputs of a captured graph and to replay it. Estimate."""
_LAY_OUT_S = 500e-6
"""Host time from a launch thread's wake-up to the first kernel: arrays, one pinned copy. Estimate."""
_SWITCH_S = 100e-6
"""Time between the end of a call in a thread and the event loop's reaction. Estimate."""
_PAIR_TOKENS = 512


class PassCost(NamedTuple):
    """Cost of a forward pass."""

    tokens_per_s: float
    """Speed of the device while kernels run without a gap."""
    launch_s: float
    """Time of the launching thread from the first kernel to the last."""


def _cost(pairs_per_s: float, launches: int, guards_s: float = 0.0) -> PassCost:
    return PassCost(pairs_per_s * _PAIR_TOKENS, _LAYERS * (launches * _LAUNCH_S + guards_s))


COSTS = {
    ("1b", "bfloat16", "eager"): _cost(380, 39),
    ("1b", "bfloat16", "compiled"): _cost(525, 11, _GUARDS_S),
    ("1b", "float8", "eager"): _cost(229, 102),
    ("1b", "float8", "compiled"): _cost(755, 12, _GUARDS_S),
    ("4b", "bfloat16", "eager"): _cost(136, 39),
    ("4b", "bfloat16", "compiled"): _cost(169, 11, _GUARDS_S),
    ("4b", "float8", "eager"): _cost(105, 102),
    ("4b", "float8", "compiled"): _cost(272, 12, _GUARDS_S),
}
"""Estimates for an H100. Launches per compiled layer are those that `benchmarks/launches.py` counts; launches per eager
layer, and the bytes from which the speeds at 512 tokens follow, were counted before layers were joined, when a compiled
layer had 15 or 16 launches. Both models have 16 layers."""


def graphed(cost: PassCost) -> PassCost:
    """The same pass as a captured graph."""
    return cost._replace(launch_s=_GRAPH_S)


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.thread_s = 0.0
        """Time within the call that a thread runs now."""


class _Selector(selectors.SelectSelector):
    """Advances the clock instead of waiting."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the simulation waits for something that never happens")
        self._clock.now_s += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop on a virtual clock. Each executor is a thread that runs one call after another."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__(_Selector(clock))
        self._virtual = clock
        self._free_at_s: dict[int, float] = {}

    def time(self) -> float:
        return self._virtual.now_s

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, call: Callable[..., Any], *arguments: Any
    ) -> "asyncio.Future[Any]":
        clock, future = self._virtual, self.create_future()
        clock.thread_s = max(clock.now_s, self._free_at_s.get(id(executor), 0.0))
        result = call(*arguments)
        self._free_at_s[id(executor)] = clock.thread_s
        self.call_at(clock.thread_s + _SWITCH_S, future.set_result, result)
        return future


class _Pass(NamedTuple):
    clock: _Clock
    done_at_s: float
    num_pairs: int

    @property
    def is_ready(self) -> bool:
        return self.clock.now_s >= self.done_at_s

    def wait(self) -> list[float]:
        self.clock.thread_s = max(self.clock.thread_s, self.done_at_s)
        return [0.0] * self.num_pairs


class _Device:
    """Starts a batch when its first kernel is launched and the batches before are done."""

    memory_tokens: int | None = None

    def __init__(self, clock: _Clock, cost: PassCost, max_in_flight: int) -> None:
        self._clock, self._cost = clock, cost
        self.max_in_flight = max_in_flight
        self.busy_s = self.done_at_s = 0.0
        self.started_at_s: float | None = None

    def launch(self, pairs: Sequence[EncodedPair]) -> _Pass:
        clock = self._clock
        kernels_s = sum(pair.num_tokens for pair in pairs) / self._cost.tokens_per_s
        clock.thread_s += _LAY_OUT_S
        starts_s = max(self.done_at_s, clock.thread_s)
        clock.thread_s += self._cost.launch_s
        if self.started_at_s is None:
            self.started_at_s = starts_s
        self.done_at_s = max(starts_s + kernels_s, clock.thread_s)  # kernels run no earlier than they are launched
        self.busy_s += kernels_s
        return _Pass(clock, self.done_at_s, len(pairs))

    @property
    def busy_share(self) -> float:
        return self.busy_s / (self.done_at_s - (self.started_at_s or 0.0))


def busy_share(cost: PassCost, batch_tokens: int, max_in_flight: int, num_batches: int = 60) -> float:
    """Share of the time from the first kernel to the last in which the device runs kernels, with a full queue of pairs
    of 512 tokens, or of one pair per batch if `batch_tokens` is smaller."""
    clock = _Clock()
    device = _Device(clock, cost, max_in_flight)
    length = min(_PAIR_TOKENS, batch_tokens)
    num_pairs = num_batches * (batch_tokens // length)
    pairs = [EncodedPair(np.empty(0, np.int32), length, False) for _ in range(num_pairs)]

    async def run() -> None:
        scheduler = Scheduler(device, batch_tokens, 2 * num_pairs * length)
        quarter = -(-num_pairs // 4)
        parts = [pairs[start : start + quarter] for start in range(0, num_pairs, quarter)]
        await asyncio.gather(*(scheduler.submit(f"request {n}", part) for n, part in enumerate(parts)))
        await scheduler.close()

    with _virtual_time(clock), asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        runner.run(run())
    return device.busy_share


@contextmanager
def _virtual_time(clock: _Clock) -> Iterator[None]:
    with patch("rerank_service.replica.scheduler.loop.time.perf_counter", lambda: clock.now_s):
        yield


def main() -> None:
    """Prints the table."""
    print("estimated, not measured: share of the time in which an H100 runs kernels, one and two batches in flight")
    print(f"{'model':6}{'precision':10}{'layers':10}{'batch tokens':>13}{'one':>8}{'two':>8}")
    for (model, precision, mode), cost in COSTS.items():
        passes = [(mode, cost, tokens) for tokens in (16_384, 4_096, 512)] + [(f"{mode}, graph", graphed(cost), 512)]
        for words, one_cost, tokens in passes:
            shares = [busy_share(one_cost, tokens, max_in_flight) for max_in_flight in (1, 2)]
            figures = "".join(f"{share:8.1%}" for share in shares)
            print(f"{model:6}{precision:10}{words:16}{tokens:>7}{figures}")


if __name__ == "__main__":
    main()
