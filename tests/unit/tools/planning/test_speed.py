"""Tests the throughput of a replica, estimated from shapes and taken from measurements."""

import json
from pathlib import Path

import pytest

from rerank_service.tools.bench.workload import Lengths
from rerank_service.tools.planning.speed import (
    EMBEDDED_TOKENS_PER_S,
    PlannedModel,
    ReplicaSpeed,
    flops_per_token,
    speed_of,
)
from rerank_service.tools.planning.workload import Mix
from rerank_service.tools.random_checkpoints.shapes import Architecture, shape_of

MIX = Mix({100: 1}, 256)
_RESULTS = Path(__file__).parents[4] / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("architecture", "size", "layers_gflop", "a_token_attended"),
    [(Architecture.LLAMA_BIDIREC, "1b", 1.946, 131_072), (Architecture.MISTRAL, "4b", 6.979, 262_144)],
)
def test_operations_equal_those_computed_by_hand(
    architecture: Architecture, size: str, layers_gflop: float, a_token_attended: int
) -> None:
    """The expected values come from decision 7 in `docs/decisions`."""
    shape = shape_of(architecture, size)

    assert flops_per_token(shape, 0) / 1e9 == pytest.approx(layers_gflop, abs=0.001)
    assert flops_per_token(shape, 512) - flops_per_token(shape, 0) == 512 * a_token_attended


def test_an_estimate_is_labelled() -> None:
    speed = speed_of(MIX, gpu="l4", mfu=0.5)

    assert not speed.is_measured
    assert "assumed, not measured" in speed.origin
    assert speed.tokens_per_s == pytest.approx(0.5 * 121e12 / 1.98e9, rel=0.01)


def test_a_measured_figure_takes_precedence_over_the_gpu() -> None:
    speed = speed_of(MIX, tokens_per_s=123_456.0, gpu="unheard of")

    assert (speed.tokens_per_s, speed.is_measured) == (123_456.0, True)


def test_an_unknown_gpu_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no datasheet figure for GPU 'b300'.*h100"):
        speed_of(MIX, gpu="b300")


def test_longer_pairs_are_slower_and_larger_gpus_faster() -> None:
    assert speed_of(Mix({1: 1}, 8192)).tokens_per_s < speed_of(MIX).tokens_per_s
    assert speed_of(MIX, model=PlannedModel.MISTRAL_4B).tokens_per_s < speed_of(MIX).tokens_per_s


def test_full_batches_pay_the_overhead_once() -> None:
    speed = ReplicaSpeed(10_000.0, batch_overhead_s=1.0, max_batch_tokens=10_000)

    assert speed.full_tokens_per_s == pytest.approx(5_000.0)


@pytest.mark.parametrize("lengths", Lengths)
def test_the_embedded_models_speed_equals_the_measurement(lengths: Lengths) -> None:
    record = json.loads((_RESULTS / "engine-cpu.json").read_text(encoding="utf-8"))
    (row,) = (
        row
        for row in record["results"]
        if (row["engine"], row["dtype"], row["lengths"]) == ("late_interaction", "int8", lengths)
    )
    tokens_a_pair = row["tokens_per_s"] / row["pairs_per_s"]

    measured = 1000 * tokens_a_pair / row["cpu_s_per_1k_pairs"]

    assert EMBEDDED_TOKENS_PER_S[lengths] == pytest.approx(measured, rel=0.001)
    assert speed_of(Mix({1: 1}, lengths), model=PlannedModel.EMBEDDED).tokens_per_s == EMBEDDED_TOKENS_PER_S[lengths]
