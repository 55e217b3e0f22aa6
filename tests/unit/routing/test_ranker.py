"""Cutting a request into shards, sending the shards in parallel, and the order of the passages."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_service.config import RerankConfig
from rerank_service.errors import QueueFull, ReplicaUnavailable, RequestTimedOut
from rerank_service.messages import Deadline, Fitting, Shard, ShardScores, TokenMatch, Truncate, rank_by_logit
from rerank_service.routing.ranker import Ranker, cut_into_shards, estimate_tokens

CONFIG = RerankConfig.model_validate(
    {"models": [{"id": "m", "checkpoint": {"source": "/m"}}], "service": {"ingress": {"shard_tokens": 1}}}
)


class Passages:
    """Scores a passage by the number in its text. Other texts cause errors or are never answered. Each passage is one
    shard."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.num_started = 0

    async def score(self, shard: Shard, deadline: Deadline) -> ShardScores:
        (passage,) = shard.passages
        self.num_started += 1
        try:
            if passage == "full":
                raise QueueFull(9, 5)
            if passage == "lost":
                raise ReplicaUnavailable("m") from ConnectionError("cause")
            if passage == "never":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(passage)
            raise
        return ShardScores((float(passage),), (7,), (passage == "3",), (False,), 0.1, float(passage), 0.3)


@pytest.fixture
def scorer() -> Passages:
    return Passages()


@pytest.fixture
def ranker(scorer: Passages) -> Ranker:
    return Ranker(scorer, CONFIG)


async def test_passages_are_ranked_and_copies_share_a_logit(ranker: Ranker, scorer: Passages) -> None:
    ranked = await ranker.rank("m", "q", ["1", "3", "2", "3"], Fitting(), Deadline.after(60.0))

    assert (ranked.order, ranked.logits) == ([1, 3, 2, 0], [1.0, 3.0, 2.0, 3.0])
    assert (ranked.num_tokens, ranked.num_truncated, ranked.num_unscored) == (28, 2, 0)
    assert (ranked.num_shards, scorer.num_started) == (3, 3)
    assert (ranked.tokenise_s, ranked.queue_s, ranked.forward_s) == (0.1, 3.0, 0.3)


async def test_token_matches_are_put_at_their_passages() -> None:
    class Aligning(Passages):
        async def score(self, shard: Shard, deadline: Deadline) -> ShardScores:
            scores = await super().score(shard, deadline)
            match = TokenMatch((0, 1), None, scores.logits[0])
            return replace(scores, can_align=True, matches=((match,),) if shard.explain else None)

    passages = ["1", "3", "2", "3"]
    plain = await Ranker(Aligning(), CONFIG).rank("m", "q", passages, Fitting(), Deadline.after(60.0))
    explained = await Ranker(Aligning(), CONFIG).rank("m", "q", passages, Fitting(), Deadline.after(60.0), explain=True)

    assert (plain.can_align, plain.matches) == (True, None)
    assert explained.matches is not None
    assert [match.similarity for (match,) in explained.matches] == [1.0, 3.0, 2.0, 3.0]


async def test_the_first_error_of_a_shard_is_raised_and_the_other_shards_are_cancelled(
    ranker: Ranker, scorer: Passages
) -> None:
    with pytest.raises(ReplicaUnavailable) as caught:
        await ranker.rank("m", "q", ["never", "1", "lost", "full"], Fitting(), Deadline.after(60.0))

    assert isinstance(caught.value.__cause__, ConnectionError)
    assert scorer.cancelled == ["never"]


@pytest.mark.parametrize("timeout_s", [0.0, 0.05])
async def test_shards_are_cancelled_at_the_deadline(ranker: Ranker, scorer: Passages, timeout_s: float) -> None:
    with pytest.raises(RequestTimedOut):
        await ranker.rank("m", "q", ["never", "1"], Fitting(), Deadline.after(timeout_s))

    assert set(scorer.cancelled) <= {"never"}
    assert timeout_s == 0.0 or scorer.cancelled == ["never"]


async def test_cancelling_a_ranking_cancels_its_shards(ranker: Ranker, scorer: Passages) -> None:
    call = asyncio.ensure_future(ranker.rank("m", "q", ["never", "1"], Fitting(), Deadline.after(60.0)))
    while scorer.num_started < 2:
        await asyncio.sleep(0)
    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert scorer.cancelled == ["never"]


class Updating(Passages):
    """Replicas of two versions: `first` has the numerics of each passage, and later passes those in `later`."""

    def __init__(self, first: str, *later: str) -> None:
        super().__init__()
        self.first = first
        self.later = list(later)
        self.asked: list[tuple[str, str]] = []

    async def score(self, shard: Shard, deadline: Deadline) -> ShardScores:
        scores = await super().score(shard, deadline)
        (passage,) = shard.passages
        self.asked.append((passage, shard.numerics))
        numerics = (self.later.pop(0) if self.later else shard.numerics) if shard.numerics else self.first[int(passage)]
        return replace(scores, numerics=numerics, num_tokens=(ord(numerics),))


@pytest.mark.parametrize(
    ("first", "later", "repeated", "expected"),
    [
        ("aaa", [], [], "aaa"),
        ("aab", [], [("2", "a")], "aaa"),
        ("abb", [], [("0", "b")], "bbb"),
        ("aab", ["b"], [("2", "a"), ("0", "b"), ("1", "b")], "bbb"),  # the last replica with `a` has stopped
        ("aab", ["c"], [("2", "a"), ("0", "c"), ("1", "c")], "ccc"),
    ],
)
async def test_all_logits_of_a_request_have_the_same_numerics(
    first: str, later: list[str], repeated: list[tuple[str, str]], expected: str
) -> None:
    replicas = Updating(first, *later)

    ranked = await Ranker(replicas, CONFIG).rank("m", "q", ["0", "1", "2"], Fitting(), Deadline.after(60.0))

    assert replicas.asked == [("0", ""), ("1", ""), ("2", ""), *repeated]
    assert (ranked.logits, ranked.numerics) == ([0.0, 1.0, 2.0], expected[0])
    assert ranked.num_tokens == sum(map(ord, expected))


async def test_a_request_ends_if_numerics_keep_changing() -> None:
    replicas = Updating("ab", *"bcdefghijk")
    with pytest.raises(ReplicaUnavailable):
        await Ranker(replicas, CONFIG).rank("m", "q", ["0", "1"], Fitting(), Deadline.after(60.0))


async def test_repeated_shards_end_at_the_deadline() -> None:
    class Late(Updating):
        async def score(self, shard: Shard, deadline: Deadline) -> ShardScores:
            if shard.numerics:
                await asyncio.Event().wait()
            return await super().score(shard, deadline)

    with pytest.raises(RequestTimedOut):
        await Ranker(Late("ab"), CONFIG).rank("m", "q", ["0", "1"], Fitting(), Deadline.after(0.2))


@given(st.lists(st.text(max_size=300), min_size=1, max_size=60), st.integers(50, 5000))
def test_every_distinct_passage_is_in_one_shard_within_the_size(passages: list[str], shard_tokens: int) -> None:
    shards = list(cut_into_shards("r", "m", "a query", passages, Fitting(), shard_tokens))

    assert [passage for shard in shards for passage in shard.passages] == list(dict.fromkeys(passages))
    for shard in shards:
        assert [passages.index(passage) for passage in shard.passages] == list(shard.indices)
        size = sum(estimate_tokens("a query", passage) for passage in shard.passages)
        assert size <= shard_tokens or len(shard.passages) == 1


def test_a_small_request_is_not_split() -> None:
    (shard,) = cut_into_shards("r", "m", "q", list("abc"), Fitting(Truncate.NONE), 10_000)

    assert (shard.request_id, shard.model, shard.indices, shard.fitting) == (
        "r",
        "m",
        (0, 1, 2),
        Fitting(Truncate.NONE),
    )


def test_shards_are_even() -> None:
    """Four replicas finish together, because no small shard remains at the end."""
    shards = list(cut_into_shards("r", "m", "q", [f"{n:03} " + "word " * 100 for n in range(100)], Fitting(), 3600))

    sizes = [len(shard.passages) for shard in shards]
    assert len(sizes) == 4
    assert max(sizes) - min(sizes) <= 1


def test_estimates_depend_on_bytes() -> None:
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
