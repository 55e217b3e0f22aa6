"""Batches that do not fit in memory, with the error that a GPU would raise."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rerank_service.engine.device.launch import TorchEngine
from rerank_service.engine.protocol import EncodedPair
from rerank_service.errors import DeviceMemoryExhausted


def pairs(lengths: Sequence[int]) -> list[EncodedPair]:
    """Pairs of the given lengths; `SmallDevice` returns the length of a pair as its logit."""
    return [EncodedPair(np.ones(length, np.int32), length, False) for length in lengths]


class SmallDevice(TorchEngine[EncodedPair]):
    """A device that holds a limited number of tokens at once."""

    def __init__(self, capacity_tokens: int) -> None:
        super().__init__(torch.device("cpu"))
        self.capacity_tokens = capacity_tokens
        self.batches: list[int] = []

    def forward(self, pairs: Sequence[EncodedPair]) -> torch.Tensor:
        num_tokens = sum(pair.num_tokens for pair in pairs)
        if num_tokens > self.capacity_tokens:
            raise torch.OutOfMemoryError(f"tried to hold {num_tokens} tokens")
        self.batches.append(num_tokens)
        return torch.tensor([float(pair.num_tokens) for pair in pairs])


def test_a_batch_that_fits_runs_in_one_pass() -> None:
    engine = SmallDevice(100)
    assert engine.score(pairs([40, 30, 30])) == [40.0, 30.0, 30.0]
    assert engine.batches == [100]
    assert engine.memory_tokens is None


def test_a_batch_that_does_not_fit_is_halved_and_logits_keep_their_order() -> None:
    engine = SmallDevice(100)
    lengths = [60, 10, 90, 20, 30, 30, 5, 100, 1]

    assert engine.score(pairs(lengths)) == [float(length) for length in lengths]
    assert sum(engine.batches) == sum(lengths)
    assert max(engine.batches) <= 100


def test_the_limit_drops_below_the_size_that_failed() -> None:
    engine = SmallDevice(100)
    engine.score(pairs([30] * 8))
    assert engine.memory_tokens is not None
    assert engine.memory_tokens <= 0.75 * 120


def test_a_pair_too_large_for_the_device_is_refused_with_its_size() -> None:
    with pytest.raises(DeviceMemoryExhausted, match="A pair of 101 tokens does not fit"):
        SmallDevice(100).score(pairs([20, 101]))


def test_other_errors_pass_through() -> None:
    class Broken(SmallDevice):
        def forward(self, pairs: Sequence[EncodedPair]) -> torch.Tensor:
            raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match="device-side assert"):
        Broken(100).score(pairs([10, 10]))
