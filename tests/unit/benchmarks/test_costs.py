"""The fit of a request's costs."""

import pytest

from benchmarks.stack.costs import Costs, fit_costs


def _request(kb: float, shards: int, ingress_ms: float, replica_ms: float) -> Costs:
    return Costs(1, kb, shards, {"ingress": ingress_ms, "replica": replica_ms}, 4.0)


def test_the_fit_returns_the_costs_of_a_request_a_kb_and_a_shard() -> None:
    sizes = [(1.0, 1), (10.0, 1), (100.0, 8), (100.0, 1)]

    fitted = fit_costs([_request(kb, shards, 2 + 0.01 * kb + 0.5 * shards, 1.0 * shards) for kb, shards in sizes])

    assert fitted["ingress"] == pytest.approx({"ms": 2.0, "ms_a_kb": 0.01, "ms_a_shard": 0.5})
    assert fitted["other"] == pytest.approx({"ms": 0.0, "ms_a_kb": 0.0, "ms_a_shard": 1.0}, abs=1e-9)


def test_no_fitted_cost_is_negative() -> None:
    sizes = [(1.0, 1), (10.0, 1), (100.0, 8), (100.0, 1)]

    fitted = fit_costs([_request(kb, shards, 6 - 0.003 * kb + 1.6 * shards, 1.0) for kb, shards in sizes])

    assert fitted["ingress"]["ms_a_kb"] == 0.0
    assert fitted["ingress"]["ms_a_shard"] == pytest.approx(1.6, rel=0.05)
