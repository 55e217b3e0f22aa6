"""Quantised checkpoints give the logits of the numbers that they stand for, or are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank_service.engine import Truncate, load_engine, loading
from rerank_service.errors import CheckpointError
from tests.models import NASTY_PASSAGES, local_model
from tests.quantise import FORMATS, quantise

QUERY = "what is the capital of France?"


def logits(folder: Path, **engine: Any) -> list[float]:
    loaded = load_engine(local_model(folder, engine=engine))
    scores: list[float] = loaded.score(loaded.tokenise(QUERY, NASTY_PASSAGES, Truncate.END))
    return scores


@pytest.mark.parametrize("form", FORMATS)
def test_logits_equal_those_of_the_dequantised_weights(form: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    quantised, plain = quantise(checkpoints["qwen3"], tmp_path, form)
    original = logits(checkpoints["qwen3"])

    assert logits(quantised) == logits(plain)  # to the last bit
    assert logits(quantised) != original
    assert logits(quantised) == pytest.approx(original, abs=2)  # int4 is coarse for random weights


@pytest.mark.parametrize("architecture", ["llama_bidirec", "bert", "xlm_roberta", "modernbert", "deberta_v2"])
@pytest.mark.parametrize("form", ["float8 by channel", "awq int4"])
def test_every_family_can_be_quantised(
    architecture: str, form: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    quantised, plain = quantise(checkpoints[architecture], tmp_path, form)
    assert logits(quantised) == logits(plain)
