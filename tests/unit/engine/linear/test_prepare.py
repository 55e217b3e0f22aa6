"""Compares linear layers of every precision with torch's own, and batches with single rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from rerank_service.config import Dtype
from rerank_service.engine.device.precision import Precision, multiplies_int8
from rerank_service.engine.linear.float8 import Float8Linear, can_be_float8
from rerank_service.engine.linear.int8 import Int8Linear
from rerank_service.engine.linear.packed import PackedLinear, can_pack
from rerank_service.engine.linear.prepare import prepare_linears

needs_int8 = pytest.mark.skipif(not multiplies_int8(), reason="this processor does not multiply 8-bit integers")
SHAPES = [(64, 128), (384, 1536), (1536, 384), (384, 1)]


def linear_of(inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs).to(dtype).requires_grad_(False)


def is_batch_invariant(layer: Callable[[Any], Any], rows: torch.Tensor) -> bool:
    together = layer(rows)
    parts = [torch.equal(layer(rows[5 : 5 + count]), together[5 : 5 + count]) for count in (1, 2, 3, 7, 16, 65, 125)]
    return all(parts) and torch.equal(layer(rows[3]), together[3]) and torch.equal(layer(rows[None]), together[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@torch.inference_mode()
def test_packed_layers_equal_torch(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    if not can_pack(dtype):
        pytest.skip(f"this processor does not multiply packed {dtype}")
    linear = linear_of(inputs, outputs, dtype)
    rows = torch.randn(130, inputs).to(dtype)
    packed = PackedLinear(linear)

    atol = 2e-2 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(packed(rows), linear(rows), atol=atol, rtol=1e-2)
    assert is_batch_invariant(packed, rows)


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@torch.inference_mode()
def test_int8_has_only_rounding_errors(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    linear = linear_of(inputs, outputs)
    rows = torch.randn(1300, inputs).to(dtype)  # more than one tile
    rows[7] = 0  # a row without a scale
    rows[8] *= 1e4
    quantised = Int8Linear(linear)

    step = rows.float().abs().amax(1, keepdim=True) / 127
    weight_step = linear.weight.abs().amax(1) / 127
    bound = inputs**0.5 * (step * linear.weight.abs().amax(1) + weight_step * rows.float().abs().amax(1, keepdim=True))
    expected = linear(rows.float())
    error = (quantised(rows).float() - expected).abs()
    assert (error <= bound + 0.01 * expected.abs() + 1e-6).all()
    assert error[7].max() <= 0.01 * linear.bias.abs().max()
    assert quantised(rows).dtype is dtype
    assert is_batch_invariant(quantised, rows)


@needs_int8
@torch.inference_mode()
def test_int8_is_exact_if_nothing_is_rounded() -> None:
    linear = linear_of(64, 32)
    linear.weight.copy_(torch.randint(0, 128, (32, 64)))
    linear.weight[:, 1::2] *= -1  # no two neighbours add up to more than the largest weight
    linear.weight[:, 0] = 127
    rows = torch.randint(-127, 128, (40, 64)).float()
    rows[:, 1] = -127

    torch.testing.assert_close(Int8Linear(linear)(rows), linear(rows), atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 128), (384, 1536)])
@torch.inference_mode()
def test_float8_has_only_rounding_errors(inputs: int, outputs: int) -> None:
    linear = linear_of(inputs, outputs)
    rows = torch.randn(130, inputs)
    rows[7] = 0

    error = (Float8Linear(linear)(rows) - linear(rows)).abs()
    products = rows.norm(dim=1, keepdim=True) * linear.weight.norm(dim=1)
    assert (error <= 2 * 2**-4 * products + 1e-6).all()  # three bits of mantissa: half a step is 1/16
    assert error.max() > 0


def test_float8_accepts_only_aligned_shapes() -> None:
    assert can_be_float8(torch.nn.Linear(64, 32))
    assert not can_be_float8(torch.nn.Linear(64, 1))


def bert() -> tuple[BertModel, torch.Tensor]:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    return BertModel(config).eval(), torch.arange(20)[None]


def kinds(model: torch.nn.Module) -> dict[str, int]:
    names = [type(module).__name__ for module in model.modules() if type(module).__name__.endswith("Linear")]
    return {name: names.count(name) for name in names}


@pytest.mark.parametrize(
    ("precision", "in_layers", "tolerance"),
    [
        (Precision(torch.float32), "PackedLinear", 1e-5),
        pytest.param(Precision(torch.float32, Dtype.INT8), "Int8Linear", 0.05, marks=needs_int8),
        (Precision(torch.float32, Dtype.FLOAT8), "Float8Linear", 0.3),
    ],
)
def test_a_prepared_model_computes_the_same_states(precision: Precision, in_layers: str, tolerance: float) -> None:
    model, ids = bert()
    with torch.inference_mode():
        expected = model(ids).last_hidden_state
        prepare_linears(model, precision)
        states = model(ids).last_hidden_state

    found = kinds(model)
    assert found.pop(in_layers) >= 12  # q, k, v, attention output and two feed-forward layers, in each of two layers
    assert set(found) <= {"PackedLinear"}  # the pooler
    torch.testing.assert_close(states, expected, atol=tolerance, rtol=0)  # GELU is applied once, not twice
