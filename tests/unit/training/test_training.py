"""Tests the data, loss and model of `training/`. Before training, a model scores like the default model."""

import gzip
import json
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.engine import Truncate, load_engine
from tests.models import embedded_model
from training.data import Group, batches, lengthen, read_groups, split_groups
from training.dev import ndcg_of_rank
from training.judge import paired_difference
from training.loss import listwise_loss, targets_and_rivals
from training.model import Scorer
from training.ranking import pair_logits, pool_logits
from training.weights import interpolate, learnt, load, save

QUERY = "What is the capital of France?"
PASSAGES = [
    "Paris is the capital and largest city of France.",
    "Berlin.",
    "The French Revolution began in 1789, when the Estates General met at Versailles, and ended in November 1799 with "
    "the coup of 18 Brumaire; many of its ideas are held to be fundamental to what people now call liberal democracy.",
]
OTHER = "who discovered penicillin"


def scorer(num_cross_layers: int = 0) -> Scorer:
    folder = resolve_checkpoint(embedded_model().checkpoint)
    return Scorer(folder, window_tokens=256, num_frozen_layers=3, num_cross_layers=num_cross_layers)


@pytest.fixture(scope="module")
def late() -> Scorer:
    return scorer()


def default_logits(query: str) -> list[float]:
    engine = load_engine(embedded_model())
    return engine.score(engine.tokenise(query, PASSAGES, Truncate.END))


@torch.inference_mode()
def all_logits(model: Scorer) -> torch.Tensor:
    queries = model.encode(model.tokenise([QUERY, OTHER]))
    return pool_logits(model, queries, model.tokenise(PASSAGES))


@torch.inference_mode()
def own_logits(model: Scorer) -> torch.Tensor:
    queries = model.encode(model.tokenise([QUERY, OTHER]))
    return pair_logits(model, queries, model.tokenise([*PASSAGES, *PASSAGES]), [0, 0, 0, 1, 1, 1]).view(2, 3)


def test_an_untrained_late_interaction_scores_like_the_default(late: Scorer) -> None:
    logits = all_logits(late)

    assert logits[0].tolist() == pytest.approx(default_logits(QUERY), abs=1e-3)
    assert logits[1].tolist() == pytest.approx(default_logits(OTHER), abs=1e-3)
    torch.testing.assert_close(own_logits(late), logits, atol=1e-4, rtol=0)


def test_an_untrained_cross_encoder_scores_like_the_default(late: Scorer) -> None:
    torch.testing.assert_close(own_logits(scorer(num_cross_layers=3)), all_logits(late), atol=1e-4, rtol=0)


def test_an_open_gate_lets_the_passage_attend_to_the_query(late: Scorer) -> None:
    model = scorer(num_cross_layers=3)
    with torch.no_grad():
        model.gates.fill_(0.5)

    assert not torch.allclose(own_logits(model), all_logits(late), atol=0.1)


def test_closed_gates_have_gradients(late: Scorer) -> None:
    model = scorer(num_cross_layers=3)
    queries = model.encode(model.tokenise([QUERY]))
    pair_logits(model, queries, model.tokenise(PASSAGES), [0, 0, 0])[0].backward()

    assert bool((model.gates.grad != 0).all())


def test_trained_weights_ignore_padding() -> None:
    model = scorer()
    with torch.no_grad():
        model.head.window_weight.fill_(5.0)
        model.head.lexical_weight.fill_(5.0)
        together = all_logits(model)
        queries = model.encode(model.tokenise([QUERY]))
        alone = [model.head.all_pairs(queries, model.encode(model.tokenise([text])))[0, 0] for text in PASSAGES]

    torch.testing.assert_close(together[0], torch.stack(alone), atol=1e-4, rtol=0)


def test_token_weights_of_a_query_sum_to_one(late: Scorer) -> None:
    queries = late.encode(late.tokenise([QUERY, OTHER]))
    weights = late.head.token_weights(queries)

    assert weights.sum(1).tolist() == pytest.approx(np.ones((2, 2)))
    assert bool((weights[~queries.words] == 0).all())


def test_interpolation_by_half_gives_the_mean_weights(tmp_path: Path) -> None:
    model = scorer()
    start = learnt(model)
    with torch.no_grad():
        model.head.lexical_weight.fill_(2.0)
    save(model, tmp_path / "weights.safetensors")

    interpolate(model, start, learnt(model), 0.5)
    assert model.head.lexical_weight.item() == 1.0
    load(model, tmp_path / "weights.safetensors")
    assert model.head.lexical_weight.item() == 2.0


def test_a_passage_with_the_positives_text_does_not_compete() -> None:
    groups = [Group("a", "q", ("same", "x")), Group("a", "r", ("same", "y")), Group("a", "s", ("z",))]
    targets, rivals = targets_and_rivals(groups)

    assert targets.tolist() == [0, 2, 4]
    assert rivals.tolist() == [
        [True, True, False, True, True],
        [False, True, True, True, True],
        [True, True, True, True, True],
    ]


def test_listwise_loss_is_the_cross_entropy_over_the_rivals() -> None:
    logits = torch.tensor([[2.0, 1.0, 9.0]])
    loss = listwise_loss(logits, torch.tensor([0]), torch.tensor([[True, True, False]]))

    assert float(loss) == pytest.approx(np.log1p(np.exp(-1.0)))


def write_groups(path: Path, rows: list[dict[str, object]]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_only_given_sources_and_consistent_groups_are_read(tmp_path: Path) -> None:
    rows = [
        {"src": "squad", "q": "é?", "pos": "yes", "negs": ["no", "nö"]},
        {"src": "qamr", "q": "which?", "pos": "yes", "negs": ["no"]},
        {"src": "squad", "q": "both?", "pos": "yes", "negs": ["yes"]},
    ]
    path = write_groups(tmp_path / "groups.jsonl.gz", rows)

    assert read_groups(path, ["squad"]) == [Group("squad", "é?", ("yes", "no", "nö"))]


def test_no_passage_is_a_positive_in_both_splits() -> None:
    groups = [Group("a", f"q{n}", (f"p{n // 3}", "x")) for n in range(900)]
    train, dev = split_groups(groups, dev_per_source=20)

    assert len(dev) == 20
    assert not {group.passages[0] for group in train} & {group.passages[0] for group in dev}


def test_batches_repeat_with_the_seed_and_keep_the_positive_first() -> None:
    groups = [Group("a", f"q{n}", (f"p{n}", "x", "y", "z")) for n in range(5)]
    first, again = (list(islice(batches(groups, {"a": 1.0}, 2, 3, seed=4), 4)) for _ in range(2))

    assert first == again
    assert all(len(g.passages) == 3 and g.passages[0] == f"p{g.query[1:]}" for batch in first for g in batch)


def test_a_lengthened_passage_contains_the_original_text() -> None:
    batch = [Group("a", "q", ("p one", "n one")), Group("a", "r", ("p two", "n two"))]
    longer = lengthen(batch, 1.0, random.Random(0))

    assert lengthen(batch, 0.0, random.Random(0)) == batch
    for before, after in zip(batch, longer, strict=True):
        assert all(
            text in joined and len(joined) > len(text)
            for text, joined in zip(before.passages, after.passages, strict=True)
        )


def test_ndcg_of_rank_assumes_one_relevant_passage() -> None:
    assert ndcg_of_rank(torch.tensor([0, 1, 9, 10])) == pytest.approx([1.0, 1 / np.log2(3), 1 / np.log2(11), 0.0])


def test_paired_difference_weighs_sets_equally() -> None:
    default = {"small": np.array([0.5, 0.5]), "large": np.zeros(100)}
    better = {"small": np.array([0.7, 0.9]), "large": np.zeros(100)}
    difference = paired_difference(better, default)

    assert difference["mean"] == pytest.approx(0.15)
    assert difference["low"] == pytest.approx(0.1)
    assert difference["high"] == pytest.approx(0.2)
