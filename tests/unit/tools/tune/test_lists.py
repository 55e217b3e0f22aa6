"""Training lists: what is drawn, in which order, and the loss."""

from pathlib import Path

import pytest
import torch

from rerank_service.tools.evaluation.collection import Collection
from rerank_service.tools.evaluation.first_stage import Bm25
from rerank_service.tools.tune.lists import ListSampler
from rerank_service.tools.tune.loss import listwise_loss
from tests.unit.tools.tune.judgements import blue_task


def sampler(judged: Collection, num_passages: int = 4, num_mined: int = 3, seed: int = 0) -> ListSampler:
    return ListSampler(
        judged, Bm25(judged.passages), frozenset(), num_passages=num_passages, num_mined=num_mined, seed=seed
    )


def test_a_list_has_one_relevant_passage_first(tmp_path: Path) -> None:
    lists = sampler(blue_task(tmp_path, 30)).lists(0, 5)

    assert lists.grades.shape == (5, len(lists.passages))
    for row, own in enumerate(lists.own):
        assert len(own) == len(set(own)) == 4
        assert lists.grades[row, list(own)].tolist() == [1, 0, 0, 0]


def test_every_query_is_drawn_before_any_is_drawn_again(tmp_path: Path) -> None:
    judged = blue_task(tmp_path, 30)
    drawn = [query for step in range(20) for query in sampler(judged).lists(step, 6).queries]

    for start in range(0, 120, 30):
        assert sorted(drawn[start : start + 30]) == sorted(judged.queries.values())
    assert drawn[:30] != drawn[30:60]


def test_lists_depend_on_seed_and_step_alone(tmp_path: Path) -> None:
    judged = blue_task(tmp_path, 30)
    in_order = [sampler(judged).lists(step, 4) for step in range(3)]
    alone = sampler(judged).lists(2, 4)

    assert (alone.queries, alone.passages, alone.own) == (
        in_order[2].queries,
        in_order[2].passages,
        in_order[2].own,
    )
    assert sampler(judged, seed=1).lists(2, 4).queries != alone.queries


def test_mined_passages_are_unjudged_and_share_words_with_the_query() -> None:
    passages = {"a": "blue whale", "b": "whale song", "c": "whale oil", "d": "stone"}
    judged = Collection("made", passages, {"q": "whale"}, {"q": {"a": 1, "b": 1}})
    drawn = {text for step in range(20) for text in sampler(judged, num_passages=4).lists(step, 1).passages}

    assert drawn == {"blue whale", "whale song", "whale oil"}


def test_judged_passages_do_not_count_as_mined() -> None:
    passages = {"a": "whale", "b": "whale whale", "c": "a whale among a great many other words of a long passage"}
    judged = Collection("made", passages, {"q": "whale"}, {"q": {"a": 1, "b": 1}})

    assert passages["c"] in sampler(judged, num_passages=2, num_mined=1).lists(0, 1).passages


def test_another_relevant_passage_in_the_step_counts_as_relevant() -> None:
    passages = {"a": "blue whale", "b": "red stone"}
    queries = {"q": "whale", "r": "stone"}
    judged = Collection("made", passages, queries, {"q": {"a": 1, "b": 2}, "r": {"b": 1}})
    lists = sampler(judged, num_passages=1, num_mined=0).lists(0, 2)

    row = lists.queries.index("stone")
    assert lists.grades[row, lists.passages.index("red stone")] == 1
    if "blue whale" in lists.passages:
        assert lists.grades[row, lists.passages.index("blue whale")] == 0
    assert lists.grades[1 - row].sum() >= 1


def test_the_loss_is_the_cross_entropy_of_the_relevant_passage() -> None:
    logits, grades = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0]])

    assert listwise_loss(logits, grades).tolist() == pytest.approx([torch.tensor(1 + torch.e**-1).log().item()])


def test_the_loss_is_least_for_shares_like_the_grades() -> None:
    grades = torch.tensor([[2.0, 1.0, 1.0]])
    fitting = torch.tensor([[2.0, 1.0, 1.0]]).log()

    assert listwise_loss(fitting, grades) < listwise_loss(fitting.flip(1), grades)
    assert listwise_loss(fitting, grades).item() == pytest.approx(1.0397, abs=1e-4)  # entropy of 1/2, 1/4, 1/4
