"""No query, and no relevant passage, is on both sides of a split."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from rerank_service.errors import BatchError
from rerank_service.tools.evaluation.collection import Collection
from rerank_service.tools.evaluation.first_stage import Bm25
from rerank_service.tools.tune.lists import ListSampler
from rerank_service.tools.tune.split import FEWEST_QUERIES, Split, split_queries
from tests.unit.tools.tune.judgements import blue_task


def collection(queries: Mapping[str, str], relevance: dict[str, dict[str, int]], **passages: str) -> Collection:
    return Collection("made", dict(passages), dict(queries), relevance)


def parts(split: Split) -> list[Collection]:
    return [split.train, split.dev, *split.held_out]


def shared_answers(num_queries: int) -> Collection:
    """Queries in pairs that share a relevant passage."""
    queries = {f"q{n}": f"question {n}" for n in range(num_queries)}
    relevance = {f"q{n}": {f"p{n // 2}": 1, f"own{n}": 1} for n in range(num_queries)}
    passages = {one: f"text of {one}" for grades in relevance.values() for one in grades}
    return Collection("shared", passages, queries, relevance)


def test_every_query_is_in_one_part(tmp_path: Path) -> None:
    judged = blue_task(tmp_path, 100)
    split = split_queries(judged, None, [], seed=0)

    assert sorted(query for part in parts(split) for query in part.queries) == sorted(judged.queries)
    assert [len(part.queries) for part in parts(split)] == [65, 15, 20]


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    judged = blue_task(tmp_path, 100)
    first, again, other = (split_queries(judged, None, [], seed) for seed in (1, 1, 2))

    assert parts(first) == parts(again)
    assert first.held_out != other.held_out


def test_queries_that_share_a_relevant_passage_stay_together() -> None:
    split = split_queries(shared_answers(100), None, [], seed=0)

    answers = [{one for grades in part.relevance.values() for one in grades} for part in parts(split)]
    assert all(answers)
    assert not answers[0] & answers[1]
    assert not answers[0] & answers[2]
    assert not answers[1] & answers[2]


def test_queries_that_differ_in_case_and_space_stay_together() -> None:
    queries = {f"q{n}": (f"Question  {n // 2}" if n % 2 else f"question {n // 2}") for n in range(100)}
    relevance = {f"q{n}": {f"p{n}": 1} for n in range(100)}
    judged = Collection("made", {f"p{n}": f"text {n}" for n in range(100)}, queries, relevance)
    split = split_queries(judged, None, [], seed=0)

    texts = [{" ".join(text.lower().split()) for text in part.queries.values()} for part in parts(split)]
    assert all(texts)
    assert not texts[0] & (texts[1] | texts[2])
    assert not texts[1] & texts[2]


def test_training_loses_queries_that_are_linked_to_given_held_out_queries(tmp_path: Path) -> None:
    judged = blue_task(tmp_path, 60)
    held_out = collection(
        {"x": "ITEM 3", "y": "unlike any other"}, {"x": {"a": 1}, "y": {"b": 1}}, a="an answer", b="Blue item  5"
    )
    split = split_queries(judged, None, [held_out], seed=0)

    kept = {*split.train.queries.values(), *split.dev.queries.values()}
    assert split.held_out == (held_out,)
    assert {"item 3", "item 5"} & kept == set()
    assert len(kept) == 58
    assert split.num_left_out == 2


def test_given_dev_queries_lose_those_that_are_held_out(tmp_path: Path) -> None:
    judged = blue_task(tmp_path, 60)
    dev = collection({"d": "item 3", "e": "new"}, {"d": {"a": 1}, "e": {"b": 1}}, a="one", b="two")
    held_out = collection({"x": "item 3"}, {"x": {"c": 1}}, c="three")
    split = split_queries(judged, dev, [held_out], seed=0)

    assert list(split.dev.queries) == ["e"]
    assert split.num_left_out == 2  # one of dev, and one of training


def test_training_never_sees_a_held_out_query_or_its_answer(tmp_path: Path) -> None:
    judged = blue_task(tmp_path, 60)
    split = split_queries(judged, None, [], seed=0)
    sampler = ListSampler(split.train, Bm25(judged.passages), split.unseen, num_passages=40, num_mined=300, seed=0)
    drawn = [sampler.lists(step, 4) for step in range(40)]

    kept_apart = {*split.dev.queries, *split.held_out[0].queries}
    queries = {judged.queries[one] for one in kept_apart}
    answers = {judged.passages[next(iter(judged.relevance[one]))] for one in kept_apart}
    assert {text for lists in drawn for text in lists.queries} & queries == set()
    assert {text for lists in drawn for text in lists.passages} == set(judged.passages.values()) - answers


def test_too_few_queries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match=f"blue has 29 judged queries .* at least {FEWEST_QUERIES}"):
        split_queries(blue_task(tmp_path, 29), None, [], seed=0)
