from hypothesis import given
from hypothesis import strategies as st

from rerank_service.messages import Fitting, Truncate, rank_by_logit
from rerank_service.routing.ranker import cut_into_shards, estimate_tokens


@given(st.lists(st.text(max_size=300), min_size=1, max_size=60), st.integers(50, 5000))
def test_every_distinct_passage_is_in_one_shard_within_the_size(passages: list[str], shard_tokens: int) -> None:
    shards = list(cut_into_shards("r", "m", "a query", passages, Fitting(), shard_tokens))

    assert [passage for shard in shards for passage in shard.passages] == list(dict.fromkeys(passages))
    for shard in shards:
        assert [passages.index(passage) for passage in shard.passages] == list(shard.indices)
        size = sum(estimate_tokens("a query", passage) for passage in shard.passages)
        assert size <= shard_tokens or len(shard.passages) == 1


def test_a_small_request_stays_whole() -> None:
    (shard,) = cut_into_shards("r", "m", "q", list("abc"), Fitting(Truncate.NONE), 10_000)

    assert (shard.request_id, shard.model, shard.indices, shard.fitting) == (
        "r",
        "m",
        (0, 1, 2),
        Fitting(Truncate.NONE),
    )


def test_shards_are_even() -> None:
    """Four replicas finish together, rather than one last and small."""
    shards = list(cut_into_shards("r", "m", "q", [f"{n:03} " + "word " * 100 for n in range(100)], Fitting(), 3600))

    sizes = [len(shard.passages) for shard in shards]
    assert len(sizes) == 4
    assert max(sizes) - min(sizes) <= 1


def test_estimates_follow_bytes() -> None:
    assert estimate_tokens("", "word " * 400) == 508
    assert estimate_tokens("", "首都" * 400) == 608
    assert estimate_tokens("", "\ud800") > 0


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=50))
def test_order_is_by_logit_then_by_index(logits: list[float]) -> None:
    order = rank_by_logit(logits)

    assert sorted(order) == list(range(len(logits)))
    assert order == sorted(order, key=lambda index: (-logits[index], index))


def test_ties_keep_the_requests_order() -> None:
    assert rank_by_logit([1.0, 3.0, 1.0, 3.0]) == [1, 3, 0, 2]
