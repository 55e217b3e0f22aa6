"""The interval of a verdict: sets count equally, and queries are resampled within their set."""

import numpy as np
import pytest

from rerank_service.tools.evaluation.measures import Figure
from rerank_service.tools.tune.verdict import Verdict, paired_difference


def test_sets_count_equally() -> None:
    difference = paired_difference([np.array([0.2, 0.4]), np.zeros(100)])

    assert difference.mean == pytest.approx(0.15)
    assert difference.low == pytest.approx(0.1)
    assert difference.high == pytest.approx(0.2)


@pytest.mark.parametrize(("low", "is_better"), [(0.001, True), (0.0, False), (-0.001, False)])
def test_a_model_is_better_if_the_whole_interval_is_above_zero(low: float, is_better: bool) -> None:
    assert Verdict((), Figure(0.01, low, 0.02)).is_better is is_better
