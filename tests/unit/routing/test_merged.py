"""What several questions of one request took together."""

import pytest

from rerank_service.messages import Ranked
from rerank_service.routing.merged import merged


@pytest.fixture
def ranked() -> Ranked:
    return Ranked([1, 0], [0.5, 2.0], 10, 1, 1, 0.1, 0.2, 0.3, 0.4)


def test_one_ranking_is_itself(ranked: Ranked) -> None:
    assert merged([ranked]) is ranked


def test_counts_add_up_and_times_are_the_slowest(ranked: Ranked) -> None:
    other = Ranked([0], [1.0], 5, 0, 2, 0.4, 0.1, 0.2, 0.9)

    assert merged([ranked, other]) == Ranked([1, 2, 0], [0.5, 2.0, 1.0], 15, 1, 3, 0.4, 0.2, 0.3, 0.9)
