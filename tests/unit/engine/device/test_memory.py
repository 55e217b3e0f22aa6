"""The token budget, computed with simulated memory; needs no GPU."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.device.memory import find_memory_tokens
from rerank_service.engine.kinds.late_interaction import LateInteractionEngine
from tests.attention import recorded_passes
from tests.models import embedded_model, local_model


class Account:
    """A device with `free` bytes, on which every pass needs `peak` bytes."""

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
def test_more_memory_holds_more_tokens(checkpoints: dict[str, Path], name: str) -> None:
    engine = load_engine(local_model(checkpoints[name]))
    small, large = (find_memory_tokens(engine, Account(free, 4_000_000)) for free in (10**7, 10**9))
    assert large == pytest.approx(100 * small, rel=0.01)


class EncoderMeter:
    """A device on which a pass needs memory only for the tokens it encodes."""

    def __init__(self, free: int, bytes_per_token: int = 1000) -> None:
        self._free, self._bytes_per_token = free, bytes_per_token

    def free_bytes(self) -> int:
        return self._free

    def peak_bytes(self, run: Callable[[], object]) -> int:
        with recorded_passes() as passes:
            run()
        return sum(packed.bounds[-1] for packed in passes) * self._bytes_per_token


def late_interaction(cache_bytes: int | None) -> LateInteractionEngine:
    engine = load_engine(embedded_model(engine={"passage_cache_bytes": cache_bytes}))
    assert isinstance(engine, LateInteractionEngine)
    return engine


def test_a_passage_cache_is_off_during_the_probe_and_its_memory_is_reserved() -> None:
    without, with_cache = late_interaction(None), late_interaction(400_000_000)

    expected = find_memory_tokens(without, EncoderMeter(600_000_000))
    found = find_memory_tokens(with_cache, EncoderMeter(1_000_000_000))

    assert 400_000 < expected < 600_000  # 80% of 600 MB minus the query cache; the query is encoded once
    assert found == expected


def test_loading_and_the_probe_store_nothing_in_the_caches() -> None:
    engine = late_interaction(10_000_000)
    find_memory_tokens(engine, EncoderMeter(1_000_000_000))
    assert engine.cache_counts == (0, 0)

    pairs = engine.tokenise("a query", ["Sorting passages by relevance to a query."], Truncate.END)
    engine.score(pairs)
    engine.score(pairs)

    assert engine.cache_counts == (1, 1)  # the warm-up's passage was not cached, and the cache is on again


def test_caches_that_take_all_memory_cause_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    engine = late_interaction(1_000_000_000)
    with caplog.at_level(logging.WARNING):
        assert find_memory_tokens(engine, EncoderMeter(900_000_000)) == engine.window_tokens
    assert "lower passage_cache_bytes or window_tokens" in caplog.text


def test_the_longest_pair_is_always_tried() -> None:
    engine = load_engine(embedded_model())
    assert find_memory_tokens(engine, Account(1, 10**9)) == engine.window_tokens


def test_a_cpu_has_no_token_limit(checkpoints: dict[str, Path]) -> None:
    assert load_engine(local_model(checkpoints["bert"])).memory_tokens is None
