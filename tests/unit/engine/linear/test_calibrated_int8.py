"""8-bit linear layers with fixed scales: observed ranges, rounding errors and clipping."""

from collections.abc import Callable

import pytest
import torch
from transformers import BertConfig, BertModel

from rerank_service.config import Dtype
from rerank_service.engine import Truncate, load_engine
from rerank_service.engine.device.precision import Precision, multiplies_int8
from rerank_service.engine.linear import calibrated_int8
from rerank_service.engine.linear.calibrated_int8 import CalibratedInt8Linear, quantise_feed_forward
from rerank_service.engine.linear.calibration import InputRange, observe_inputs
from rerank_service.engine.linear.prepare import prepare_linears
from tests.models import embedded_model

needs_int8 = pytest.mark.skipif(not multiplies_int8(), reason="this processor does not multiply 8-bit integers")


def linear_of(inputs: int, outputs: int, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(inputs + outputs)
    return torch.nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def range_of(rows: torch.Tensor) -> InputRange:
    return InputRange(rows.amin(0), rows.amax(0))


def is_batch_invariant(layer: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> bool:
    together = layer(rows)
    parts = [torch.equal(layer(rows[5 : 5 + count]), together[5 : 5 + count]) for count in (1, 2, 3, 16, 65, 125)]
    return all(parts) and torch.equal(layer(rows[3]), together[3]) and torch.equal(layer(rows[None]), together[None])


def test_every_call_can_widen_the_observed_range() -> None:
    first, second, never = (linear_of(3, 3) for _ in range(3))

    def run() -> None:
        first(torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 0.5]]))
        first(torch.tensor([[[-4.0, 0.0, 0.5]]]))
        second(torch.ones(3))

    seen = observe_inputs([first, second, never], run)
    assert seen.keys() == {first, second}
    assert seen[first].lowest.tolist() == [-4.0, -2.0, 0.5]
    assert seen[first].highest.tolist() == [1.0, 3.0, 0.5]


def test_hooks_are_removed_after_a_failure() -> None:
    layer = linear_of(3, 3)

    def run() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        observe_inputs([layer], run)
    assert not layer._forward_pre_hooks


@needs_int8
@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 128), (384, 1536), (1536, 384), (384, 1)])
@torch.inference_mode()
def test_rows_within_range_have_only_rounding_errors(states: torch.dtype, inputs: int, outputs: int) -> None:
    linear = linear_of(inputs, outputs)
    rows = torch.randn(900, inputs).to(states)  # more than one tile
    rows[:, 0] *= 40  # one channel with much larger values
    rows[7] = 0
    layer = CalibratedInt8Linear(linear, range_of(rows.float()), states)

    expected = linear(rows.float())
    got = layer(rows)
    assert got.dtype is states
    assert (got.float() - expected).std() <= 0.03 * expected.std()
    torch.testing.assert_close(got[7].float(), linear.bias, atol=5e-3, rtol=1e-2)  # zero is on the grid
    assert is_batch_invariant(layer, rows)


@needs_int8
@torch.inference_mode()
def test_values_out_of_range_are_clipped() -> None:
    linear = linear_of(64, 32, bias=False)
    rows = torch.randn(50, 64).clamp(-1, 1)
    layer = CalibratedInt8Linear(linear, InputRange(-torch.ones(64), torch.ones(64)), torch.float32)

    assert torch.equal(layer(1e3 * rows.sign()), layer(1e6 * rows.sign()))
    assert layer(torch.full((2, 64), torch.inf)).isfinite().all()


@needs_int8
@torch.inference_mode()
def test_a_feed_forward_keeps_its_outliers(monkeypatch: pytest.MonkeyPatch) -> None:
    up, down = linear_of(96, 256), linear_of(256, 96)
    up.bias[5:7] = 60.0  # two channels far beyond the others, as in trained encoders
    down.weight[:, 5:7] /= 50
    rows = torch.randn(300, 96)

    def error() -> torch.Tensor:
        between = range_of(torch.nn.functional.gelu(up(rows)))
        first, second = quantise_feed_forward(up, down, range_of(rows), between, torch.float32)
        assert is_batch_invariant(lambda some: second(first(some)), rows)
        expected = down(torch.nn.functional.gelu(up(rows)))
        return (second(first(rows)) - expected).std() / expected.std()

    kept = error()
    monkeypatch.setattr(calibrated_int8, "_NUM_OUTLIERS", 1)
    assert kept < 0.02
    assert error() > 5 * kept


@needs_int8
def test_only_layers_called_in_calibration_have_fixed_scales() -> None:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    model, ids = BertModel(config).eval(), torch.arange(20)[None]
    with torch.inference_mode():
        expected = model(ids).last_hidden_state
        some = torch.randn(1, 90, 32)
        prepare_linears(model, Precision(torch.float32, Dtype.INT8), lambda: model.encoder.layer[0](some))
        states = model(ids).last_hidden_state

    first, second = model.encoder.layer
    assert type(first.intermediate.dense).__name__ == "UpProjection"
    assert type(first.output.dense).__name__ == "DownProjection"
    assert type(first.attention.self.query).__name__ == "CalibratedInt8Linear"
    assert type(second.intermediate.dense).__name__ == type(second.output.dense).__name__ == "Int8Linear"
    torch.testing.assert_close(states, expected, atol=0.1, rtol=0)  # GELU is applied once, not twice


@needs_int8
def test_the_embedded_model_ranks_in_int8_as_in_float32() -> None:
    query = "How do I keep bread fresh?"
    passages = ["Wrap the loaf in cloth.", "The train is late.", "Bread goes stale as its starch hardens.", "Yeast"]
    logits = {}
    for dtype in ("float32", "int8"):
        engine = load_engine(embedded_model(engine={"dtype": dtype, "num_threads": 2}))
        logits[dtype] = engine.score(engine.tokenise(query, passages, Truncate.END))

    assert logits["int8"] == pytest.approx(logits["float32"], abs=0.25)
    assert sorted(range(4), key=logits["int8"].__getitem__) == sorted(range(4), key=logits["float32"].__getitem__)
