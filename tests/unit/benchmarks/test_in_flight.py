"""The service's scheduler keeps a simulated GPU busy, with the estimated costs of launching kernels."""

import pytest

from benchmarks.in_flight import COSTS, PassCost, busy_share, graphed
from rerank_service.config import default_batch_tokens, default_min_batch_tokens

FULL = default_batch_tokens(on_gpu=True)
SMALLEST = default_min_batch_tokens(FULL)
NAMES = [" ".join(key) for key in COSTS]


@pytest.mark.parametrize("cost", COSTS.values(), ids=NAMES)
@pytest.mark.parametrize("batch_tokens", [FULL, SMALLEST])
def test_two_batches_in_flight_leave_no_gap(cost: PassCost, batch_tokens: int) -> None:
    assert busy_share(cost, batch_tokens, max_in_flight=2) > 0.97


@pytest.mark.parametrize("cost", COSTS.values(), ids=NAMES)
def test_a_graph_leaves_no_gap_between_small_batches(cost: PassCost) -> None:
    assert busy_share(graphed(cost), 512, max_in_flight=2) > 0.97


def test_with_one_batch_in_flight_the_device_waits_for_the_host() -> None:
    cost = COSTS["1b", "float8", "compiled"]
    assert busy_share(cost, SMALLEST, max_in_flight=1) < 0.97


def test_kernels_that_take_longer_to_launch_than_to_run_limit_the_device() -> None:
    cost = COSTS["1b", "bfloat16", "eager"]
    assert busy_share(cost, 512, max_in_flight=2) < 0.6
