"""A pair's logit does not depend on its neighbours, to the last bit, on a CPU, in every engine and precision."""

import random
from pathlib import Path

import pytest
import torch

from rerank_service.config import ModelConfig
from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.device.precision import multiplies_int8
from rerank_service.engine.linear.packed import can_pack
from rerank_service.tools.random_checkpoints.make import Architecture
from tests.models import NASTY_PASSAGES, embedded_model, local_model

BATCH_SIZES = range(1, 14)
ENGINES = ["embedded", *(architecture.value for architecture in Architecture)]


def passages(rng: random.Random) -> list[str]:
    words = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "his", "they"]
    return NASTY_PASSAGES + [" ".join(rng.choices(words, k=rng.randint(1, 120))) for _ in range(24)]


def model_of(name: str, checkpoints: dict[str, Path], dtype: str) -> ModelConfig:
    settings = {"engine": {"dtype": dtype, "num_threads": 2}}
    return embedded_model(**settings) if name == "embedded" else local_model(checkpoints[name], **settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float8"])
@pytest.mark.parametrize("name", ENGINES)
def test_alone_and_among_random_neighbours(checkpoints: dict[str, Path], name: str, dtype: str) -> None:
    if dtype == "int8" and not multiplies_int8():
        pytest.skip("this processor does not multiply 8-bit integers")
    rng = random.Random(0)
    engine = load_engine(model_of(name, checkpoints, dtype))
    pairs = engine.tokenise("what is it?", passages(rng), Truncate.END)
    others = engine.tokenise("quite another question", passages(rng), Truncate.END)
    pool = pairs + others
    probe = pairs[rng.randrange(len(pairs))]
    (alone,) = engine.score([probe])

    states = torch.float32 if dtype == "float32" else torch.bfloat16
    bound = 0.0 if can_pack(states) else 0.05  # an AVX2 processor rounds bfloat16 as it likes
    is_slow = name == "embedded" or dtype == "float8"  # real weights, or products emulated on a CPU
    for size in [*BATCH_SIZES] * (1 if is_slow else 2):
        batch = [probe, *rng.choices(pool, k=size - 1)]
        rng.shuffle(batch)
        assert abs(engine.score(batch)[batch.index(probe)] - alone) <= bound
