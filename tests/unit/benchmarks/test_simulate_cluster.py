"""The simulation reproduces what was measured on the real stack around simulated devices."""

import pytest

from benchmarks.simulate_cluster import OPEN_LOADS, compare, recorded


@pytest.mark.parametrize("file", OPEN_LOADS)
def test_throughput_and_latency_are_near_the_measured_ones(file: str) -> None:
    """The p99 is left out: it is the fifth longest of 467 latencies and differs by up to 13% from run to run."""
    saturated = {row["replicas"]: row for row in recorded("stack-scaling.json")["results"]}
    for row in recorded(file)["results"]:
        if row["replicas"] > 4:
            continue  # eight replicas take the simulation seconds and add no other mechanism
        compared = compare(row["replicas"], saturated[row["replicas"]], row)

        for name in ("tokens_per_s", "p50_s", "p95_s"):
            assert compared[name]["simulated"] == pytest.approx(compared[name]["measured"], rel=0.15), name
