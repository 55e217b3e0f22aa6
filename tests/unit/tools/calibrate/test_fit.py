"""Maps fitted to synthetic pairs whose true probabilities are known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from rerank_service.config import CalibrationConfig
from rerank_service.errors import BatchError
from rerank_service.tools.calibrate.calibrate import calibrate_pairs
from rerank_service.tools.calibrate.fit import (
    METHODS,
    _folds,
    fit,
    held_out_probabilities,
    isotonic,
    platt,
    probabilities,
)
from rerank_service.tools.calibrate.measures import log_losses
from rerank_service.tools.calibrate.pairs import JudgedPairs

Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def logistic(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-0.8 * (logits - 2))))


def uneven(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Far from every logistic function: almost flat, a jump, almost flat."""
    return np.asarray(0.1 + 0.02 * (logits + 5) / 10 + 0.5 * (logits > 1))


def pairs_of(curve: Curve, num_queries: int, per_query: int = 20, seed: int = 1) -> JudgedPairs:
    generator = np.random.default_rng(seed)
    logits = generator.uniform(-5, 5, num_queries * per_query)
    is_relevant = generator.random(len(logits)) < curve(logits)
    return JudgedPairs(logits, is_relevant, np.repeat(np.arange(num_queries), per_query))


def test_platt_finds_the_true_function() -> None:
    calibration = platt(pairs_of(logistic, 2_000))

    assert calibration.slope == pytest.approx(0.8, abs=0.03)
    grid = np.linspace(-5, 5, 21)
    assert probabilities(calibration, grid) == pytest.approx(logistic(grid), abs=0.015)


def test_platt_maximises_the_likelihood_of_platts_targets() -> None:
    pairs = pairs_of(logistic, 30)
    positives, negatives = pairs.num_relevant, len(pairs) - pairs.num_relevant
    targets = np.where(pairs.is_relevant, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    weights = np.zeros(2)
    inputs = np.stack([pairs.logits, np.ones(len(pairs))])
    for _ in range(50):  # Newton's method, written here from the formula
        expected = 1 / (1 + np.exp(-weights @ inputs))
        hessian = (inputs * expected * (1 - expected)) @ inputs.T
        weights += np.linalg.solve(hessian, inputs @ (targets - expected))

    calibration = platt(pairs)

    assert calibration.slope == pytest.approx(weights[0], abs=1e-5)
    assert probabilities(calibration, pairs.logits) == pytest.approx(1 / (1 + np.exp(-weights @ inputs)), abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_separates_all_pairs_has_finite_probabilities(method: str) -> None:
    logits = np.linspace(-3, 3, 400)
    pairs = JudgedPairs(logits, logits > 1, np.arange(400) // 10)

    calibration = METHODS[method](pairs)

    assert probabilities(calibration, logits).min() > 0
    assert calibration.probability(3) > 0.95 > 0.05 > calibration.probability(-3)


@pytest.mark.parametrize("method", METHODS)
def test_logits_that_fall_with_relevance_are_refused(method: str) -> None:
    pairs = pairs_of(logistic, 100)

    with pytest.raises(BatchError, match="relevant passages do not have higher logits"):
        METHODS[method](JudgedPairs(-pairs.logits, pairs.is_relevant, pairs.query))


def test_isotonic_follows_a_curve_that_is_not_logistic() -> None:
    pairs = pairs_of(uneven, 3_000)
    grid = np.concatenate([np.linspace(-4, 0.7, 20), np.linspace(1.3, 4, 20)])

    assert probabilities(isotonic(pairs), grid) == pytest.approx(uneven(grid), abs=0.05)
    assert np.abs(probabilities(platt(pairs), grid) - uneven(grid)).max() > 0.1


def test_isotonic_points_are_the_steps_of_isotonic_regression() -> None:
    logits = np.repeat([0.0, 1.0, 2.0, 3.0], 100)
    is_relevant = np.concatenate([np.arange(100) < count for count in (10, 60, 40, 90)])  # 1 and 2 are one step
    pairs = JudgedPairs(logits, is_relevant, np.tile(np.arange(20), 20))

    points = isotonic(pairs).points

    rate = 200 / 400
    assert [logit for logit, _ in points] == pytest.approx([0, 1.5, 3])
    expected = [(10 + rate) / 101, (100 + rate) / 201, (90 + rate) / 101]
    assert [probability for _, probability in points] == pytest.approx(expected, rel=1e-5)


def test_an_isotonic_map_has_at_most_64_points() -> None:
    generator = np.random.default_rng(3)
    logits = np.sort(generator.normal(size=60_000))
    pairs = JudgedPairs(logits, generator.random(60_000) < logistic(3 * logits), np.arange(60_000) % 500)
    num_steps = len(np.unique(IsotonicRegression().fit_transform(pairs.logits, pairs.is_relevant)))

    calibration = isotonic(pairs)

    assert len(calibration.points) == 64 < num_steps
    grid = np.linspace(-2, 2, 41)
    assert probabilities(calibration, grid) == pytest.approx(logistic(3 * grid), abs=0.06)


def test_isotonic_is_chosen_only_where_it_is_better() -> None:
    assert fit(pairs_of(uneven, 500)).method == "isotonic"
    assert fit(pairs_of(logistic, 500)).method == "platt"
    assert fit(pairs_of(uneven, 20, per_query=5)).method == "platt"  # too few judgements to show it
    assert fit(pairs_of(logistic, 100), "isotonic").method == "isotonic"


def test_no_query_helps_to_predict_its_own_pairs() -> None:
    pairs = pairs_of(logistic, 57)

    held_out = np.concatenate([part for _, part in _folds(pairs)])
    assert sorted(held_out.tolist()) == list(range(len(pairs)))
    for others, part in _folds(pairs):
        assert set(pairs.query[others].tolist()).isdisjoint(pairs.query[part].tolist())


@pytest.mark.parametrize("method", METHODS)
def test_held_out_probabilities_are_worse_than_those_of_a_map_that_has_seen_the_labels(method: str) -> None:
    pairs = pairs_of(logistic, 20, per_query=5)

    seen = log_losses(pairs, probabilities(METHODS[method](pairs), pairs.logits)).mean()
    held_out = log_losses(pairs, held_out_probabilities(pairs, method)).mean()

    assert held_out > seen + 0.01


def test_figures_are_of_held_out_queries_and_repeatable() -> None:
    pairs = pairs_of(logistic, 200)

    result, again = calibrate_pairs(pairs), calibrate_pairs(pairs)

    assert result == again
    assert result.calibrated["calibration error"].mean < 0.05 < result.sigmoid["calibration error"].mean
    assert 0 < result.gain.low < result.gain.mean < result.gain.high
    difference = result.sigmoid["log loss"].mean - result.calibrated["log loss"].mean
    assert result.gain.mean == pytest.approx(difference)


def test_a_model_that_is_calibrated_already_gains_nothing() -> None:
    def plain(logits: Any) -> NDArray[np.float64]:
        return np.asarray(1 / (1 + np.exp(-logits)))

    result = calibrate_pairs(pairs_of(plain, 100))

    assert result.gain.low < 0
    assert result.calibration.probability(0.0) == pytest.approx(0.5, abs=0.06)


def test_the_written_map_is_within_the_bounds_of_the_configuration() -> None:
    for curve in (logistic, uneven):
        for method in METHODS:
            calibration = METHODS[method](pairs_of(curve, 300))
            assert CalibrationConfig.model_validate(calibration.model_dump()) == calibration
