"""Fits maps from logits to probabilities: Platt's logistic function and isotonic regression, and the choice between
both.

Platt's function has two parameters, and few judgements are enough for it. Isotonic regression follows any increasing
curve, but needs more judgements (Niculescu-Mizil and Caruana, "Predicting good probabilities with supervised learning",
ICML 2005). Both come from scikit-learn.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.model_selection import StratifiedGroupKFold  # type: ignore[import-untyped]

from rerank_service.config import CalibrationConfig
from rerank_service.config.calibration import log_odds_of, sigmoid
from rerank_service.errors import BatchError
from rerank_service.tools.calibrate.measures import log_losses, mean_over_queries
from rerank_service.tools.calibrate.pairs import JudgedPairs

__all__ = ["METHODS", "Fitted", "fit", "held_out_probabilities", "isotonic", "platt", "probabilities"]

_FOLDS = 5
_SEED = 0
_MAX_STEPS = 64
"""Maximum number of points of an isotonic map."""
_DIGITS = 6


class Fitted(NamedTuple):
    """A map, and the name of its method in `METHODS`."""

    method: str
    calibration: CalibrationConfig


def platt(pairs: JudgedPairs) -> CalibrationConfig:
    """The logistic function with the highest likelihood. Raises `BatchError` if it does not increase.

    The labels are Platt's targets, which are slightly above 0 and below 1 ("Probabilistic outputs for support vector
    machines", 1999): without them, the slope would be infinite for a model that separates all pairs.
    """
    num_relevant = pairs.num_relevant
    high, low = (num_relevant + 1) / (num_relevant + 2), 1 / (len(pairs) - num_relevant + 2)
    targets = np.where(pairs.is_relevant, high, low)
    # A pair with target t is a relevant pair with weight t and an irrelevant pair with weight 1 - t.
    logits = np.concatenate([pairs.logits, pairs.logits])[:, None]
    labels = np.repeat([1, 0], len(pairs))
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8)
    model.fit(logits, labels, sample_weight=np.concatenate([targets, 1 - targets]))
    slope, intercept = round(float(model.coef_[0, 0]), _DIGITS), float(model.intercept_[0])
    if slope <= 0:
        raise BatchError(
            "relevant passages do not have higher logits than irrelevant ones, so no map turns the logits into "
            "probabilities: check the qrels and the model"
        )
    # The point is at a logit that occurs, not where the function is 0.5, which may be far away.
    logit = round(float(np.median(pairs.logits[pairs.is_relevant])), _DIGITS)
    return CalibrationConfig(points=((logit, _inside(sigmoid(slope * logit + intercept))),), slope=slope)


def isotonic(pairs: JudgedPairs) -> CalibrationConfig:
    """The increasing step function with the least squared error, with one point in the middle of each step.

    Each step's rate includes one pair with the overall rate, so that no probability is 0 or 1. Beyond the first and
    last step, the map continues with the slope of `platt`.
    """
    logits, num_pairs, num_relevant = _steps(pairs)
    overall = pairs.num_relevant / len(pairs)
    rates = (num_relevant + overall) / (num_pairs + 1)
    # The additional pair may reverse neighbouring steps that are small.
    merged = IsotonicRegression().fit_transform(logits, rates, sample_weight=num_pairs)
    groups = np.unique(merged, return_inverse=True)[1]
    weights = np.bincount(groups, num_pairs).astype(np.float64)
    logits = np.bincount(groups, num_pairs * logits) / weights
    rates = np.bincount(groups, num_pairs * rates) / weights
    logits, rates = _fewer_points(logits, rates, weights)
    points: list[tuple[float, float]] = []
    for logit, rate in zip(logits.tolist(), rates.tolist(), strict=True):
        point = round(logit, _DIGITS), _inside(rate)
        if not points or (point[0] > points[-1][0] and point[1] > points[-1][1]):
            points.append(point)
    return CalibrationConfig(points=tuple(points), slope=platt(pairs).slope)


METHODS: Mapping[str, Callable[[JudgedPairs], CalibrationConfig]] = MappingProxyType(
    {"platt": platt, "isotonic": isotonic}
)


def fit(pairs: JudgedPairs, method: str | None = None) -> Fitted:
    """Fits a map with `method`. If it is null, fits an isotonic map if its log loss on held-out queries is lower than
    Platt's, with a 95% interval of the difference that excludes 0; else Platt's."""
    if method is None:
        losses = {name: log_losses(pairs, _held_out(pairs, name)) for name in METHODS}
        difference = mean_over_queries(pairs, losses["platt"] - losses["isotonic"])
        method = "isotonic" if difference.low > 0 else "platt"
    return Fitted(method, METHODS[method](pairs))


def held_out_probabilities(pairs: JudgedPairs, method: str | None = None) -> NDArray[np.float64]:
    """The probability of each pair by a map that was fitted, and whose method was chosen, without the pair's query."""
    found = np.empty(len(pairs))
    for others, held_out in _folds(pairs):
        found[held_out] = probabilities(fit(pairs.at(others), method).calibration, pairs.logits[held_out])
    return found


def probabilities(calibration: CalibrationConfig, logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probabilities of several logits, by the function that the service uses."""
    return np.fromiter(map(calibration.probability, logits.tolist()), np.float64, len(logits))


def _held_out(pairs: JudgedPairs, method: str) -> NDArray[np.float64]:
    found = np.empty(len(pairs))
    for others, held_out in _folds(pairs):
        found[held_out] = probabilities(METHODS[method](pairs.at(others)), pairs.logits[held_out])
    return found


def _folds(pairs: JudgedPairs) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yields the indices of all other pairs and of the held-out pairs. All pairs of a query are in the same part, since
    they depend on each other; each part has about the same share of relevant pairs."""
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=_SEED)
    for others, held_out in folds.split(pairs.logits, pairs.is_relevant, pairs.query):
        if len(np.unique(pairs.is_relevant[others])) < 2:
            raise BatchError("too few queries have relevant and irrelevant candidates; add judged queries")
        yield others, held_out


def _steps(pairs: JudgedPairs) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The mean logit, the number of pairs and the number of relevant pairs of each isotonic step."""
    fitted = IsotonicRegression().fit_transform(pairs.logits, pairs.is_relevant.astype(np.float64))
    steps = np.unique(fitted, return_inverse=True)[1]
    num_pairs = np.bincount(steps).astype(np.float64)
    num_relevant = np.bincount(steps, pairs.is_relevant).astype(np.float64)
    return np.bincount(steps, pairs.logits) / num_pairs, num_pairs, num_relevant


def _fewer_points(
    logits: NDArray[np.float64], rates: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Joins neighbouring points, the closest in log-odds first, until there are at most `_MAX_STEPS`."""
    while len(logits) > _MAX_STEPS:
        first = int(np.argmin(np.diff([log_odds_of(_inside(rate)) for rate in rates])))
        both = slice(first, first + 2)
        total = weights[both].sum()
        logits[first] = (weights[both] * logits[both]).sum() / total
        rates[first] = (weights[both] * rates[both]).sum() / total
        weights[first] = total
        logits, rates, weights = (np.delete(column, first + 1) for column in (logits, rates, weights))
    return logits, rates


def _inside(rate: float) -> float:
    """A probability that a map can have: rounded to six significant digits, and neither 0 nor 1."""
    return min(max(float(f"{rate:.{_DIGITS}g}"), 1e-9), 1 - 1e-9)
