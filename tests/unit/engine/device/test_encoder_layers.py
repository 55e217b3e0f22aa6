"""Compares the layers that a CPU runs with transformers' own."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, XLMRobertaConfig, XLMRobertaModel

from rerank_service.engine.device.encoder_layers import (
    EncoderLayer,
    FirstTokenLayer,
    attend_joined,
    replace_encoder_layers,
)
from rerank_service.engine.device.forward import PACKED_ATTENTION, hidden_states, packed_attention
from rerank_service.engine.device.pack import PackedSequences, pack
from rerank_service.engine.linear.joined import join_linears

FAMILIES = [(BertModel, BertConfig), (RobertaModel, RobertaConfig), (XLMRobertaModel, XLMRobertaConfig)]


def packed_of(lengths: tuple[int, ...]) -> PackedSequences:
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 90, length).astype(np.int32) for length in lengths]
    return pack(ids, torch.device("cpu"))


def noisy_model(model_class: Any, config_class: Any, activation: str) -> Any:
    """A random model whose biases are not zero and whose norms are not one."""
    torch.manual_seed(0)
    config = config_class(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=90,
        max_position_embeddings=700, hidden_act=activation,
    )  # fmt: skip
    config._attn_implementation = PACKED_ATTENTION
    model = model_class(config).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize(("model_class", "config_class"), FAMILIES)
def test_the_layers_compute_what_transformers_computes(model_class: Any, config_class: Any, activation: str) -> None:
    model, packed = noisy_model(model_class, config_class, activation), packed_of((7, 300, 1, 600))
    expected = hidden_states(model, packed)

    join_linears(model)
    replace_encoder_layers(model)

    assert all(isinstance(layer, EncoderLayer) for layer in model.encoder.layer)
    torch.testing.assert_close(hidden_states(model, packed), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [(1,), (7, 300, 1, 600), (3,) * 33])
@pytest.mark.parametrize(("model_class", "config_class"), FAMILIES)
def test_the_last_layer_may_compute_only_first_tokens(
    model_class: Any, config_class: Any, lengths: tuple[int, ...]
) -> None:
    model, packed = noisy_model(model_class, config_class, "gelu"), packed_of(lengths)
    expected = hidden_states(model, packed)[packed.cu_seqlens[:-1]]

    join_linears(model)
    replace_encoder_layers(model, first_tokens_only=True)

    assert [type(layer) for layer in model.encoder.layer] == [EncoderLayer, EncoderLayer, FirstTokenLayer]
    torch.testing.assert_close(hidden_states(model, packed), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_first_tokens_are_computed_without_the_other_rows() -> None:
    """None of the last layer's products has a row for every token: even keys and values are not computed."""
    model, packed = noisy_model(BertModel, BertConfig, "gelu"), packed_of((30, 40, 58))
    join_linears(model)
    replace_encoder_layers(model, first_tokens_only=True)
    rows: dict[str, int] = {}
    for name, linear in model.encoder.layer[-1].named_modules():
        if isinstance(linear, torch.nn.Linear):
            linear.register_forward_hook(lambda _, inputs, __, name=name: rows.update({name: inputs[0].size(1)}))

    hidden_states(model, packed)

    assert set(rows) == {"query", "attention_output.dense", "intermediate.dense", "output.dense"}
    assert set(rows.values()) == {16}


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_joined_attention_equals_packed_attention(dtype: torch.dtype, scale: float) -> None:
    """To the last bit, with rows after the last sequence, and for scores whose powers leave the range of floats."""
    torch.manual_seed(0)
    packed = packed_of((3, 1, 126, 257, 513))
    qkv = torch.randn(1, packed.bounds[-1] + 5, 3 * 4 * 8).to(dtype) * scale
    query, key, value = qkv.view(1, -1, 12, 8).transpose(1, 2).chunk(3, 1)

    attended = attend_joined(qkv, 8, 0.3, packed)

    expected, _ = packed_attention(torch.nn.Identity(), query, key, value, None, scaling=0.3, packed=packed)
    assert attended.isfinite().all()
    torch.testing.assert_close(attended, expected.reshape(attended.shape), atol=0, rtol=0)
