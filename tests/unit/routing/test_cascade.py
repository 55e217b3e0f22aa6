"""Which passages go on, and how the stages' logits become one ranking."""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_service.config import Keep, MarginConfig
from rerank_service.errors import NonFiniteLogit
from rerank_service.messages import Ranked, SentenceContributions, rank_by_logit
from rerank_service.routing.cascade import GAP, ScoredStage, StageSpeed, joined, keeps_all, passages_to_keep

PASSAGES = [f"passage {number}" for number in range(10)]
HIGHEST = 3.4028234663852886e38
"""The largest float32 number."""


def ranked(logits: Sequence[float]) -> Ranked:
    return Ranked(rank_by_logit(logits), list(logits), 10 * len(logits), 0, 1, 0.1, 0.2, 0.3, 0.6)


def scored(indices: Sequence[int], logits: Sequence[float]) -> ScoredStage:
    return ScoredStage(list(indices), ranked(logits))


def float32(value: float) -> float:
    return ctypes.c_float(value).value


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (1, [3]),
        (3, [0, 3, 8]),
        (100, list(range(10))),
        (0.1, [3]),
        (0.3, [0, 3, 8]),
        (0.31, [0, 2, 3, 8]),
        (0.001, [3]),
        (MarginConfig(margin=0), [3]),
        (MarginConfig(margin=2), [0, 3, 8]),
        (MarginConfig(margin=2, at_most=2), [3, 8]),
        (MarginConfig(margin=2, at_most=5), [0, 3, 8]),
    ],
)
def test_the_best_passages_go_on_in_the_order_of_the_request(keep: Keep, kept: list[int]) -> None:
    logits = [4.0, -1.0, 1.0, 5.0, -9.0, -8.0, -7.0, -6.0, 4.5, -5.0]

    assert passages_to_keep(keep, PASSAGES, ranked(logits)) == kept


@pytest.mark.parametrize("keep", [2, 0.5])
def test_copies_of_a_passage_go_on_together_and_count_once(keep: Keep) -> None:
    passages = ["a", "b", "a", "c", "a", "d"]

    assert passages_to_keep(keep, passages, ranked([3.0, 1.0, 3.0, 2.0, 3.0, 0.0])) == [0, 2, 3, 4]


def test_of_equal_passages_the_first_go_on() -> None:
    assert passages_to_keep(2, PASSAGES, ranked([1.0] * 10)) == [0, 1]
    assert passages_to_keep(MarginConfig(margin=0), PASSAGES, ranked([1.0] * 10)) == list(range(10))


def test_only_a_number_of_passages_is_known_to_keep_all_before_scoring() -> None:
    assert keeps_all(10, PASSAGES)
    assert keeps_all(2, ["a", "b", "a"])
    assert not keeps_all(9, PASSAGES)
    assert not keeps_all(0.9, PASSAGES[:1])
    assert not keeps_all(MarginConfig(margin=100), PASSAGES)
    assert not keeps_all(None, PASSAGES)


def test_the_last_stage_decides_and_dropped_passages_follow_in_their_own_order() -> None:
    first = scored(range(6), [1.0, 9.0, 8.0, 7.0, 6.5, 2.0])
    second = scored([1, 2, 3, 4], [-2.0, 0.5, -1.0, -1.5])
    third = scored([2, 3], [-4.0, -3.0])

    whole = joined([first, second, third], 1.5)

    assert whole.order == [3, 2, 4, 1, 5, 0]
    assert whole.logits == [-7.5, -5.5, -4.0, -3.0, -5.0, -6.5]
    assert (whole.num_tokens, whole.num_shards, whole.total_s) == (120, 3, 1.5)
    assert (whole.tokenise_s, whole.queue_s, whole.forward_s) == pytest.approx((0.3, 0.6, 0.9))


def test_a_group_that_is_low_enough_keeps_its_logits() -> None:
    whole = joined([scored(range(4), [-20.0, 3.0, -30.0, 2.0]), scored([1, 3], [0.25, -0.5])], 0.0)

    assert whole.logits == [-20.0, 0.25, -30.0, -0.5]


def test_a_single_stage_is_its_own_ranking() -> None:
    whole = joined([scored(range(3), [1.0, 3.0, 2.0])], 0.5)

    assert (whole.logits, whole.order) == ([1.0, 3.0, 2.0], [1, 2, 0])


def test_truncated_and_unscored_passages_are_the_most_of_any_stage() -> None:
    first, last = ranked([1.0, 2.0, 3.0]), ranked([1.0, 2.0])
    whole = joined(
        [
            ScoredStage([0, 1, 2], replace(first, num_truncated=3, num_unscored=1)),
            ScoredStage([1, 2], replace(last, num_truncated=1, num_unscored=2)),
        ],
        0.0,
    )

    assert (whole.num_truncated, whole.num_unscored) == (3, 2)


def test_explanations_name_the_passages_of_the_request() -> None:
    explanations = [SentenceContributions(1, []), SentenceContributions(0, [])]
    last = replace(ranked([1.0, 2.0]), explanations=explanations)

    whole = joined([scored(range(4), [4.0, 1.0, 3.0, 2.0]), ScoredStage([0, 2], last)], 0.0)

    assert whole.explanations is not None
    assert [one.index for one in whole.explanations] == [2, 0]


@given(st.data())
def test_any_logits_keep_the_order_in_float32(data: st.DataObject) -> None:
    """The values of the engine are float32, and clients may read the answer as float32."""
    # Nothing fits below the lowest float32 numbers, which no model returns.
    logit = (
        st.floats(-(2.0**120), 2.0**120, width=32, allow_subnormal=False)
        | st.floats(-32, 32, width=32, allow_subnormal=False)
        | st.sampled_from([0.0, 2.0**-149, -(2.0**-149), 1.0])
    )
    counts = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4).map(lambda some: sorted(some)[::-1]))
    indices = list(range(counts[0]))
    stages = []
    for count in counts:
        indices = sorted(data.draw(st.permutations(indices))[:count])
        stages.append(scored(indices, data.draw(st.lists(logit, min_size=count, max_size=count))))

    whole = joined(stages, 0.0)

    assert [whole.logits[index] for index in stages[-1].indices] == stages[-1].ranked.logits
    assert all(math.isfinite(logit) and float32(logit) == logit for logit in whole.logits)
    assert whole.order == rank_by_logit(whole.logits)
    for earlier, later in pairwise(stages):
        own = dict(zip(earlier.indices, earlier.ranked.logits, strict=True))
        dropped = own.keys() - set(later.indices)
        for index in dropped:
            assert whole.logits[index] < min(whole.logits[one] for one in later.indices)
            for other in dropped:
                assert (whole.logits[index] < whole.logits[other]) == (own[index] < own[other])


def test_neighbours_closer_than_float32_stay_apart_and_copies_stay_equal() -> None:
    whole = joined([scored(range(5), [5.0, 3e-9, 2e-9, 2e-9, 1e-9]), scored([0], [-100.0])], 0.0)

    first, second, third, fourth = whole.logits[1:]
    assert first == -100.0 - GAP
    assert first > second == third > fourth
    assert fourth == pytest.approx(first, abs=1e-4)


def test_logits_without_room_below_are_refused() -> None:
    with pytest.raises(NonFiniteLogit):
        joined([scored(range(2), [1.0, 0.0]), scored([0], [-HIGHEST])], 0.0)


def test_the_expected_time_of_a_stage_is_on_the_low_side() -> None:
    now_s = 0.0
    speed = StageSpeed(lambda: now_s)
    assert speed.expected_s(1_000_000) == 0.0

    speed.add(1000, 2.0)

    assert speed.expected_s(1000) == 2.0
    assert speed.expected_s(500) == 1.0
    assert speed.expected_s(10_000) == 2.0


def test_a_measured_time_is_averaged_and_then_forgotten() -> None:
    now_s = 0.0
    speed = StageSpeed(lambda: now_s)
    speed.add(1000, 1.0)
    speed.add(1000, 2.0)
    assert speed.expected_s(1000) == pytest.approx(1.2)

    now_s = 31.0
    assert speed.expected_s(1000) == 0.0
    speed.add(1000, 5.0)

    assert speed.expected_s(1000) == 5.0
