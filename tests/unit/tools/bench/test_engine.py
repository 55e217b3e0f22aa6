"""Tests the engine benchmark and its workload. No speed is asserted."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.engine.text.tokenise import load_tokenizer
from rerank_service.tools.bench.workload import Lengths, draw_lengths, make_passages
from rerank_service.tools.cli.main import app
from tests.models import embedded_model


@pytest.mark.parametrize(
    ("distribution", "mean", "longest"),
    [(Lengths.SHORT, 92, 320), (Lengths.CHUNKS, 390, 512), (Lengths.LONG_TAIL, 262, 2048)],
)
def test_lengths_have_the_stated_mean_and_bound(distribution: Lengths, mean: int, longest: int) -> None:
    lengths = draw_lengths(distribution, 20_000)

    assert np.mean(lengths) == pytest.approx(mean, rel=0.05)
    assert max(lengths) <= longest
    assert draw_lengths(distribution, 50) == draw_lengths(distribution, 50) != draw_lengths(distribution, 50, seed=1)


def test_passages_have_the_given_lengths() -> None:
    tokenizer = load_tokenizer(resolve_checkpoint(embedded_model().checkpoint))
    lengths = [1, 5, 90, 400]

    passages = make_passages(tokenizer, lengths)

    assert [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in passages] == lengths


def test_every_engine_is_compared_with_its_bare_forward() -> None:
    result = CliRunner().invoke(app, ["bench", "engine", "--json", "--pairs", "4", "--repeats", "1", "--threads", "1"])

    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["engines"]
    assert {row["engine"] for row in rows} == {"sequence_classifier", "late_interaction", "bidirectional_decoder"}
    for row in rows:
        assert row["cpu_s_per_1k_pairs"] > 0
        assert row["ratio_to_bare"] == pytest.approx(
            row["cpu_s_per_1k_pairs"] / row["bare_cpu_s_per_1k_pairs"], rel=0.02
        )
        assert (row["max_logit_error"] == 0) == (row["dtype"] == "float32")
