"""The measurement of batch invariance finds logits that depend on their batch."""

import random
from collections.abc import Sequence

import numpy as np

from benchmarks.gpu_invariance import changes
from rerank_service.engine.protocol import EncodedPair


class Dependent:
    """An engine whose logits of long pairs depend on the size of the batch."""

    def score(self, pairs: Sequence[EncodedPair]) -> list[float]:
        drift = 0.25 if len(pairs) == 8 else 0.0
        return [pair.num_tokens + (drift if pair.num_tokens > 100 else 0.0) for pair in pairs]


def test_the_largest_change_of_each_pair_is_found() -> None:
    pairs = [EncodedPair(np.empty(0, np.int32), length, False) for length in [*range(90, 110)] * 2]

    alone, largest, num_batches = changes(Dependent(), pairs, 1, random.Random(0))

    assert alone == [pair.num_tokens for pair in pairs]
    assert largest == [0.25 if pair.num_tokens > 100 else 0.0 for pair in pairs]
    assert num_batches == 40 + 20 + 14 + 8 + 5 + 3 + 1
