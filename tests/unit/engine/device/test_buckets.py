"""Sizes of the CUDA graphs: how much padding they add, and up to which batch they are used."""

from itertools import pairwise

import pytest

from rerank_service.engine.device.graphs import bucket_sizes, largest_bucket
from rerank_service.tools.bench.workload import Lengths, draw_lengths

PROMPT_TOKENS = 14
"""Tokens of a short query and of the 1B's template."""
PASSAGES = (1, 2, 3, 5, 10, 20, 50)
H100, L4 = 989e12, 121e12


def share_of_padding(lengths: Lengths, num_passages: int, buckets: list[int]) -> float | None:
    """Padding over the tokens of requests that fit in a bucket; null if hardly any request fits."""
    drawn = [min(512, length + PROMPT_TOKENS) for length in draw_lengths(lengths, 4000)]
    totals = [sum(drawn[start : start + num_passages]) for start in range(0, len(drawn), num_passages)]
    fitting = [total for total in totals if total <= buckets[-1]]
    if len(fitting) < len(totals) / 100:
        return None
    padded = sum(next(bucket for bucket in buckets if total <= bucket) for total in fitting)
    return padded / sum(fitting) - 1


@pytest.mark.parametrize("lengths", Lengths)
@pytest.mark.parametrize("largest", [2048, 8192])
def test_padding_adds_less_than_a_tenth(lengths: Lengths, largest: int) -> None:
    buckets = bucket_sizes(largest)
    shares = {count: share for count in PASSAGES if (share := share_of_padding(lengths, count, buckets)) is not None}
    assert 1 in shares
    assert sum(shares.values()) / len(shares) < 0.075
    short_pairs = {1: 0.17}  # of 32 tokens, below which the weights are read no faster for fewer tokens
    for count, share in shares.items():
        assert share < short_pairs.get(count, 0.1) if lengths is Lengths.SHORT else share < 0.1, (count, share)


def test_sizes_grow_with_equal_steps_within_each_doubling() -> None:
    sizes = bucket_sizes(2048)
    assert sizes[:3] == [32, 64, 96]
    assert sizes[-3:] == [1792, 1920, 2048]
    assert len(sizes) == 32
    assert max((above - below) / above for below, above in pairwise(sizes[7:])) <= 1 / 8
    assert bucket_sizes(2400)[-1] == 2304  # not above the limit


@pytest.mark.parametrize(
    ("num_layers", "flops_per_token", "peak", "smallest", "largest"),
    [
        (16, 2 * 973e6, H100, 2048, 2560),  # NVIDIA's 1B
        (24, 2 * 3489e6, H100, 768, 1280),  # a 4B
        (6, 2 * 10.6e6, H100, 8192, 8192),  # all-MiniLM-L6-v2
        (16, 2 * 973e6, L4, 512, 512),  # a slow GPU computes longer than the host launches
        (16, 2 * 973e6, None, 2048, 2560),
    ],
)
def test_the_largest_size_depends_on_model_and_gpu(
    num_layers: int, flops_per_token: float, peak: float | None, smallest: int, largest: int
) -> None:
    assert smallest <= largest_bucket(num_layers, flops_per_token, peak) <= largest
