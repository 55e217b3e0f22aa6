"""Compares joined products and deferred residuals with the layers of transformers, in float32 on a CPU."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GemmaConfig,
    GemmaModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from rerank_service.config import Dtype
from rerank_service.engine.device.forward import PACKED_ATTENTION, PACKED_CAUSAL_ATTENTION, hidden_states
from rerank_service.engine.device.pack import PackedSequences, pack
from rerank_service.engine.device.precision import Precision
from rerank_service.engine.device.residuals import defer_residuals
from rerank_service.engine.linear.float8 import Float8Linear
from rerank_service.engine.linear.joined import join_linears
from rerank_service.engine.linear.prepare import prepare_linears

TOLERANCE = 1e-5
"""Accepted difference of a state: a joined product may add its terms in another order than separate ones."""

_DECODERS = {
    "llama": (LlamaModel, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralModel, MistralConfig, {"head_dim": 24}),
    "qwen2": (Qwen2Model, Qwen2Config, {}),
    "qwen3": (Qwen3Model, Qwen3Config, {"head_dim": 24}),
    "gemma": (GemmaModel, GemmaConfig, {"head_dim": 24}),
}
_ENCODERS = {
    "bert": (BertModel, BertConfig, {}),
    "roberta": (RobertaModel, RobertaConfig, {}),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig, {}),
}
FAMILIES = [*_DECODERS, *_ENCODERS]


def model_of(family: str, attention: str = PACKED_ATTENTION) -> Any:
    torch.manual_seed(0)
    model_class, config_class, special = ({**_DECODERS, **_ENCODERS})[family]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    if family in _DECODERS:
        sizes["num_key_value_heads"] = 2
    config = config_class(**sizes, vocab_size=90, max_position_embeddings=128, **special)
    config._attn_implementation = attention
    model: Any = model_class(config)
    model = model.eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():  # biases are zero and norms are one otherwise
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch(lengths: tuple[int, ...] = (7, 30, 1, 12)) -> PackedSequences:
    rng = np.random.default_rng(0)
    return pack([rng.integers(5, 90, length).astype(np.int32) for length in lengths], torch.device("cpu"))


def names_of(model: torch.nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules()]


def num_bytes(model: torch.nn.Module) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in model.parameters()}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("attention", [PACKED_ATTENTION, PACKED_CAUSAL_ATTENTION])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_joined_layers_compute_the_same_states(family: str, attention: str) -> None:
    model, packed = model_of(family, attention), batch()
    expected, size = hidden_states(model, packed), num_bytes(model)

    join_linears(model)

    torch.testing.assert_close(hidden_states(model, packed), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert num_bytes(model) == size  # no second copy of the weights remains
    layers = model.layers if family in _DECODERS else model.encoder
    assert names_of(layers).count("Linear") == 3 * 4  # heads, attention output, and two of the feed-forward network


@pytest.mark.parametrize("family", _DECODERS)
@pytest.mark.parametrize("is_joined", [False, True])
@torch.inference_mode()
def test_deferred_residuals_change_no_bit(family: str, is_joined: bool) -> None:
    model, packed = model_of(family), batch()
    if is_joined:
        join_linears(model)
    expected = hidden_states(model, packed)

    defer_residuals(model)

    assert torch.equal(hidden_states(model, packed), expected)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_layers_compile_once_without_graph_breaks(family: str) -> None:
    """`tests/unit/benchmarks/test_launches.py` compiles them with Inductor."""
    model, packed = model_of(family), batch((9, 30))
    expected = hidden_states(model, packed)
    join_linears(model)
    defer_residuals(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for layer in model.layers if family in _DECODERS else model.encoder.layer:
        layer.compile(backend="eager", dynamic=True, fullgraph=True)

    for _ in range(2):
        torch.testing.assert_close(hidden_states(model, packed), expected, atol=TOLERANCE, rtol=TOLERANCE)

    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # for all layers, the first one included


@torch.inference_mode()
def test_float8_quantises_joined_weights_as_separate_weights() -> None:
    separate, joined = model_of("llama"), model_of("llama")
    join_linears(joined)
    attention = separate.layers[0].self_attn
    parts = [Float8Linear(layer) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    whole = Float8Linear(joined.layers[0].self_attn.qkv_proj)

    rows = torch.randn(20, 64)
    assert torch.equal(whole._weight.float(), torch.cat([part._weight for part in parts]).float())
    torch.testing.assert_close(whole(rows), torch.cat([part(rows) for part in parts], -1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("precision", [Precision(torch.float32), Precision(torch.float32, Dtype.FLOAT8)])
def test_a_cpu_joins_only_the_attention_of_encoders(precision: Precision) -> None:
    decoder, encoder = model_of("llama"), model_of("bert")
    expected = hidden_states(encoder, batch())
    for model in (decoder, encoder):
        prepare_linears(model, precision)

    assert "LlamaAttention" in names_of(decoder)
    assert {"JoinedAttention", "JoinedFeedForward"}.isdisjoint(names_of(decoder))
    assert names_of(encoder).count("EncoderLayer") == 3
    tolerance = TOLERANCE if precision.quantised is None else 0.3
    torch.testing.assert_close(hidden_states(encoder, batch()), expected, atol=tolerance, rtol=tolerance)


def test_other_classes_stay_as_they_are() -> None:
    """ModernBERT has one product already, and attention that is not packed reads more of its module."""
    config = ModernBertConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    for model in (ModernBertModel(config), model_of("bert", "sdpa")):
        before = names_of(model)
        join_linears(model)
        defer_residuals(model)
        assert names_of(model) == before


@pytest.mark.parametrize("function", [join_linears, defer_residuals])
def test_a_second_call_changes_nothing(function: Any) -> None:
    model = model_of("llama")
    function(model)
    before = names_of(model)
    partial(function, model)()
    assert names_of(model) == before
