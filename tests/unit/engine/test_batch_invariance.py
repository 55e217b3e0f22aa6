"""On a CPU, a pair has the same logit to the last bit in every batch, for each engine and precision."""

import random
from pathlib import Path

import pytest
import torch

from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import ModelConfig
from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.device.precision import multiplies_int8
from rerank_service.engine.linear.packed import can_pack
from rerank_service.tools.bench.engine import make_classifier
from rerank_service.tools.random_checkpoints.make import Architecture
from tests.models import NASTY_PASSAGES, embedded_model, local_model

NUM_RANDOM_BATCHES = 14
"""Number of random batches. Each pair's logit is compared with its logit alone, over a hundred times in total."""
ENGINES = ["embedded", *(architecture.value for architecture in Architecture)]


def passages(rng: random.Random) -> list[str]:
    """Long and short texts. Most are short, because long texts are slow on a processor without AVX-512."""
    words = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "his", "they"]
    return NASTY_PASSAGES + [" ".join(rng.choices(words, k=rng.randint(1, 40))) for _ in range(10)]


def model_of(name: str, checkpoints: dict[str, Path], dtype: str) -> ModelConfig:
    settings = {"engine": {"dtype": dtype, "num_threads": 2}}
    return embedded_model(**settings) if name == "embedded" else local_model(checkpoints[name], **settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float8"])
@pytest.mark.parametrize("name", ENGINES)
def test_a_pair_has_the_same_logit_alone_and_in_any_batch(checkpoints: dict[str, Path], name: str, dtype: str) -> None:
    if dtype == "int8" and not multiplies_int8():
        pytest.skip("this processor does not multiply 8-bit integers")
    rng = random.Random(0)
    engine = load_engine(model_of(name, checkpoints, dtype))
    pairs = engine.tokenise("what is it?", passages(rng), Truncate.END)
    pairs += engine.tokenise("quite another question", passages(rng)[-8:], Truncate.END)
    alone = [engine.score([pair])[0] for pair in pairs]

    states = torch.float32 if dtype == "float32" else torch.bfloat16
    bound = 0.0 if can_pack(states) else 0.05  # with AVX2 alone, the rounding of bfloat16 varies
    every = list(range(len(pairs)))
    for batch in [every, *(rng.choices(every, k=rng.randint(2, 13)) for _ in range(NUM_RANDOM_BATCHES))]:
        logits = engine.score([pairs[index] for index in batch])
        assert max(abs(logit - alone[index]) for index, logit in zip(batch, logits, strict=True)) <= bound


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_pair_has_the_same_logit_in_batches_of_many_pairs(tmp_path: Path, dtype: str) -> None:
    """A classifier's last layer has one row for each pair, rounded up to a number of rows that batches share."""
    if dtype == "int8" and not multiplies_int8():
        pytest.skip("this processor does not multiply 8-bit integers")
    make_classifier(resolve_checkpoint(embedded_model().checkpoint), tmp_path)
    engine = load_engine(local_model(tmp_path, engine={"dtype": dtype, "num_threads": 2}))
    pairs = engine.tokenise("what is it?", [f"passage {number}" for number in range(150)], Truncate.END)
    alone = [engine.score([pair])[0] for pair in pairs[:16]]

    bound = 0.0 if can_pack(torch.float32 if dtype == "float32" else torch.bfloat16) else 0.05
    for num_pairs in (16, 17, 33, 64, 65, 130, 150):
        logits = engine.score(pairs[:num_pairs])[:16]
        assert max(abs(logit - own) for logit, own in zip(logits, alone, strict=True)) <= bound


@pytest.mark.skipif(not multiplies_int8(), reason="this processor does not multiply 8-bit integers")
def test_logits_in_int8_do_not_depend_on_the_number_of_threads() -> None:
    """The scales come from a calibration when the model is loaded, so replicas must calibrate alike."""
    logits = []
    for num_threads in (1, 2):
        engine = load_engine(embedded_model(engine={"dtype": "int8", "num_threads": num_threads}))
        logits.append(engine.score(engine.tokenise("what is it?", NASTY_PASSAGES, Truncate.END)))
    assert logits[0] == logits[1]
