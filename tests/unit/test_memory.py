"""The token budget, with a made-up account of memory: no GPU needed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rerank_service.engine import load_engine
from rerank_service.engine.memory import find_memory_tokens
from tests.models import embedded_model, local_model


class Account:
    """A device where a pass takes `bytes_per_token` for each of the probe's tokens."""

    def __init__(self, free: int, peak: int) -> None:
        self.free, self.peak = free, peak
        self.runs = 0

    def free_bytes(self) -> int:
        return self.free

    def peak_bytes(self, run: Callable[[], object]) -> int:
        run()
        self.runs += 1
        return self.peak


@pytest.mark.parametrize("name", ["llama_bidirec", "bert"])
def test_more_memory_more_tokens(checkpoints: dict[str, Path], name: str) -> None:
    engine = load_engine(local_model(checkpoints[name]))
    small, large = (find_memory_tokens(engine, Account(free, 4_000_000)) for free in (10**7, 10**9))
    assert large == pytest.approx(100 * small, rel=0.01)


def test_the_longest_pair_is_always_tried() -> None:
    engine = load_engine(embedded_model())
    assert find_memory_tokens(engine, Account(1, 10**9)) == engine.window_tokens


def test_on_a_cpu_there_is_no_bound(checkpoints: dict[str, Path]) -> None:
    assert load_engine(local_model(checkpoints["bert"])).memory_tokens is None
