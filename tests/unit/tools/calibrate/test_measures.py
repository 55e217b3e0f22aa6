"""Measures of probabilities, compared with scikit-learn's and with figures computed by hand."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from rerank_service.errors import BatchError
from rerank_service.tools.calibrate.measures import calibration_error, measures_of, reliability, thresholds
from rerank_service.tools.calibrate.pairs import JudgedPairs, judged_only
from rerank_service.tools.evaluation.collection import Collection

PROBABILITIES = np.array([0.9, 0.35, 0.32, 0.05, 0.6, 0.95])
PAIRS = JudgedPairs(
    np.zeros(6), np.array([True, True, False, False, False, True]), np.array([0, 0, 0, 0, 1, 1], np.intp)
)


def random_pairs(num_queries: int, per_query: int) -> tuple[JudgedPairs, np.ndarray]:
    generator = np.random.default_rng(7)
    probabilities = generator.random(num_queries * per_query)
    is_relevant = generator.random(len(probabilities)) < probabilities**2
    query = np.repeat(np.arange(num_queries), per_query)
    return JudgedPairs(np.zeros(len(query)), is_relevant, query), probabilities


def test_means_equal_those_of_scikit_learn() -> None:
    pairs, probabilities = random_pairs(50, 8)

    measures = measures_of(pairs, probabilities)

    assert measures["log loss"].mean == pytest.approx(log_loss(pairs.is_relevant, probabilities))
    assert measures["Brier score"].mean == pytest.approx(brier_score_loss(pairs.is_relevant, probabilities))
    for figure in measures.values():
        assert figure.low < figure.mean < figure.high


def test_the_calibration_error_equals_that_computed_by_hand() -> None:
    # tenths: 0.05 | 0.35 and 0.32 | 0.6 | 0.9 and 0.95
    by_hand = (abs(0.05 - 0) + abs(0.67 - 1) + abs(0.6 - 0) + abs(1.85 - 2)) / 6

    assert calibration_error(PAIRS, PROBABILITIES).mean == pytest.approx(by_hand)
    assert [(one.num_pairs, one.relevant) for one in reliability(PAIRS, PROBABILITIES)] == [
        (1, 0.0),
        (2, 0.5),
        (1, 0.0),
        (2, 1.0),
    ]


def test_certain_and_wrong_probabilities_have_a_finite_loss() -> None:
    pairs = JudgedPairs(np.zeros(2), np.array([True, False]), np.array([0, 1], np.intp))

    assert measures_of(pairs, np.array([0.0, 1.0]))["log loss"].mean == pytest.approx(-np.log(1e-12))
    assert reliability(pairs, np.array([0.0, 1.0]))[-1].probability == 1.0


def test_an_interval_counts_queries_not_pairs() -> None:
    pairs, probabilities = random_pairs(40, 5)
    repeated = JudgedPairs(*(np.repeat(column, 10) for column in (pairs.logits, pairs.is_relevant, pairs.query)))

    assert measures_of(repeated, np.repeat(probabilities, 10)) == {
        name: pytest.approx(figure) for name, figure in measures_of(pairs, probabilities).items()
    }


def test_what_a_threshold_keeps_is_counted_by_hand() -> None:
    low, middle, high = thresholds(PAIRS, PROBABILITIES, (0.32, 0.6, 0.96))

    assert (low.precision, low.recall, low.kept_per_query, low.empty_queries) == (3 / 5, 1.0, 2.5, 0.0)
    assert (middle.precision, middle.recall, middle.kept_per_query) == pytest.approx((2 / 3, 2 / 3, 1.5))
    assert (high.precision, high.recall, high.kept_per_query, high.empty_queries) == (None, 0.0, 0.0, 1.0)


def test_pairs_are_labelled_by_grade_and_unjudged_pairs_are_irrelevant_or_left_out() -> None:
    collection = Collection("c", {}, {"a": "?", "b": "?"}, {"a": {"p": 2, "q": 1}, "b": {"p": 0}})
    candidates = {"a": ["p", "q", "r"], "b": ["p", "s"]}
    logits = {"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0]}

    pairs = JudgedPairs.of(collection, candidates, logits, min_grade=1)

    assert pairs.is_relevant.tolist() == [True, True, False, False, False]
    assert pairs.query.tolist() == [0, 0, 0, 1, 1]
    assert pairs.logits.tolist() == [1, 2, 3, 4, 5]
    assert JudgedPairs.of(collection, candidates, logits, min_grade=2).is_relevant.tolist() == [True] + [False] * 4
    assert judged_only(collection, candidates) == {"a": ["p", "q"], "b": ["p"]}


@pytest.mark.parametrize(
    ("num_queries", "labels", "problem"),
    [
        (19, [True, False], "19 queries have candidates; a calibration needs at least 20"),
        (30, [False, False], "0 of 60 candidates are relevant"),
        (30, [True, True], "0 of 60 candidates are irrelevant"),
    ],
)
def test_too_few_judgements_are_refused(num_queries: int, labels: list[bool], problem: str) -> None:
    query = np.repeat(np.arange(num_queries), 2)

    with pytest.raises(BatchError, match=problem):
        JudgedPairs(np.zeros(len(query)), np.tile(labels, num_queries), query).check()
