"""A pair's logit does not depend on its neighbours, to the last bit, on a CPU, in every engine and precision."""

import random
from pathlib import Path

import pytest
import torch

from rerank_service.checkpoints.make import Architecture
from rerank_service.config import ModelConfig
from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.cpu_linear import PackedLinear, can_pack, pack_linears
from tests.models import NASTY_PASSAGES, embedded_model, local_model

NUM_BATCHES = 100
ENGINES = ["embedded", *(architecture.value for architecture in Architecture)]


def passages(rng: random.Random) -> list[str]:
    words = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "his", "they"]
    return NASTY_PASSAGES + [" ".join(rng.choices(words, k=rng.randint(1, 120))) for _ in range(24)]


def model_of(name: str, checkpoints: dict[str, Path], dtype: str) -> ModelConfig:
    settings = {"engine": {"dtype": dtype, "num_threads": 2}}
    return embedded_model(**settings) if name == "embedded" else local_model(checkpoints[name], **settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ENGINES)
def test_alone_and_among_random_neighbours(checkpoints: dict[str, Path], name: str, dtype: str) -> None:
    rng = random.Random(0)
    engine = load_engine(model_of(name, checkpoints, dtype))
    pairs = engine.tokenise("what is it?", passages(rng), Truncate.END)
    others = engine.tokenise("quite another question", passages(rng), Truncate.END)
    pool = pairs + others
    probe = pairs[rng.randrange(len(pairs))]
    (alone,) = engine.score([probe])

    bound = 0.0 if can_pack(getattr(torch, dtype)) else 0.05  # an AVX2 processor rounds bfloat16 as it likes
    num_batches = NUM_BATCHES if name != "embedded" else NUM_BATCHES // 5  # real weights: seconds a batch
    for _ in range(num_batches):
        batch = [probe, *rng.choices(pool, k=rng.randint(0, 12))]
        rng.shuffle(batch)
        assert abs(engine.score(batch)[batch.index(probe)] - alone) <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 128), (384, 1536), (1536, 384), (384, 1)])
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    if not can_pack(dtype):
        pytest.skip(f"this processor does not multiply packed {dtype}")
    torch.manual_seed(0)
    linear = torch.nn.Linear(inputs, outputs).to(dtype)
    packed = PackedLinear(linear)
    rows = torch.randn(130, inputs).to(dtype)

    with torch.inference_mode():
        together = packed(rows)
        torch.testing.assert_close(together, linear(rows), atol=2e-2 if dtype is torch.bfloat16 else 1e-5, rtol=1e-2)
        for count in (1, 2, 3, 7, 16, 65, 125):
            assert torch.equal(packed(rows[5 : 5 + count]), together[5 : 5 + count])
        assert torch.equal(packed(rows[3]), together[3])
        assert torch.equal(packed(rows[None]), together[None])


def test_gelu_is_computed_once() -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    model = BertModel(config).eval()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        expected = model(ids).last_hidden_state

        assert pack_linears(model) == 7  # q, k, v, attention output, two of the feed-forward, the pooler
        torch.testing.assert_close(model(ids).last_hidden_state, expected, atol=1e-5, rtol=1e-4)
