"""config.json and tensor names of each architecture, as published.

Configurations of decoders are written key by key, because transformers would write them differently. Names and shapes
of tensors come from transformers' own classes on the meta device, without weights, or from `foreign_formats`.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from rerank_service.tools.random_checkpoints.foreign_formats import (
    gte_config,
    gte_shapes,
    minicpm_config,
    minicpm_shapes,
)
from rerank_service.tools.random_checkpoints.shapes import Architecture, Shape

__all__ = ["published_config", "tensor_shapes"]

_CLASSES: dict[Architecture, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    Architecture.LLAMA_BIDIREC: (LlamaConfig, LlamaForSequenceClassification),
    Architecture.MISTRAL: (MistralConfig, MistralForSequenceClassification),
    Architecture.BERT: (BertConfig, BertForSequenceClassification),
    Architecture.XLM_ROBERTA: (XLMRobertaConfig, XLMRobertaForSequenceClassification),
    Architecture.MODERNBERT: (ModernBertConfig, ModernBertForSequenceClassification),
    Architecture.DEBERTA_V2: (DebertaV2Config, DebertaV2ForSequenceClassification),
    Architecture.QWEN3: (Qwen3Config, Qwen3ForCausalLM),
}

_NOT_NATIVE = {"architectures", "auto_map", "model_type", "pooling", "temperature", "transformers_version"}
"""Keys of a published configuration that transformers' own class does not accept."""

_ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def published_config(
    architecture: Architecture, shape: Shape, vocab_size: int, special_ids: Mapping[str, int], dtype: str
) -> dict[str, Any]:
    """The content of config.json. `special_ids` maps names such as "bos_token_id" to token ids."""
    if architecture is Architecture.LLAMA_BIDIREC:
        return _llama_config(shape, vocab_size, special_ids, dtype)
    if architecture is Architecture.MISTRAL:
        return _mistral_config(shape, vocab_size, special_ids, dtype)
    if architecture is Architecture.QWEN3:
        return _qwen3_config(shape, vocab_size, special_ids, dtype)
    if architecture is Architecture.GTE:
        return gte_config(shape, vocab_size, special_ids, dtype)
    if architecture is Architecture.MINICPM:
        return minicpm_config(shape, vocab_size, special_ids, dtype)
    return _encoder_config(architecture, shape, vocab_size, special_ids, dtype)


def tensor_shapes(
    architecture: Architecture, config: Mapping[str, Any], *, head_bias: bool = False
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a checkpoint with this config.json. `head_bias` adds score.bias."""
    if architecture is Architecture.GTE:
        return gte_shapes(config)
    if architecture is Architecture.MINICPM:
        return minicpm_shapes(config)
    config_class, model_class = _CLASSES[architecture]
    # A deep copy, because transformers adds rope_theta to the rope_scaling it receives.
    settings = {key: deepcopy(value) for key, value in config.items() if key not in _NOT_NATIVE}
    with torch.device("meta"):
        model = model_class(config_class(**settings))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if architecture is Architecture.QWEN3 and config["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    if head_bias:
        shapes["score.bias"] = (1,)
    return shapes


def _llama_config(shape: Shape, vocab_size: int, special_ids: Mapping[str, int], dtype: str) -> dict[str, Any]:
    remote = "llama_bidirectional_model.LlamaBidirectional"
    return {
        "architectures": ["LlamaBidirectionalForSequenceClassification"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": f"{remote}Config",
            "AutoModelForSequenceClassification": f"{remote}ForSequenceClassification",
        },
        "head_dim": shape.hidden_size // shape.num_heads,
        "mlp_bias": False,
        "model_type": "llama_bidirec",
        "pooling": "avg",
        "pretraining_tp": 1,
        "rope_scaling": {
            "factor": shape.rope_factor,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": shape.rope_original_tokens,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "temperature": 1.0,
        "tie_word_embeddings": True,
        **_decoder_config(shape, vocab_size, special_ids, dtype),
    }


def _mistral_config(shape: Shape, vocab_size: int, special_ids: Mapping[str, int], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["MistralForSequenceClassification"],
        "model_type": "mistral",
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        **_decoder_config(shape, vocab_size, special_ids, dtype),
    }


def _qwen3_config(shape: Shape, vocab_size: int, special_ids: Mapping[str, int], dtype: str) -> dict[str, Any]:
    causal = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": shape.head_dim,
        "max_window_layers": shape.num_layers,
        "model_type": "qwen3",
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": shape.is_tied,
        "use_sliding_window": False,
    }
    config = _decoder_config(shape, vocab_size, special_ids, dtype) | causal | {"rms_norm_eps": 1e-06}
    config["bos_token_id"] = special_ids["pad_token_id"]  # as published, although Qwen3's tokenizer has no bos token
    return {key: value for key, value in config.items() if key not in _ONE_LABEL}


def _decoder_config(shape: Shape, vocab_size: int, special_ids: Mapping[str, int], dtype: str) -> dict[str, Any]:
    return {
        **_ONE_LABEL,
        "bos_token_id": special_ids.get("bos_token_id"),
        "eos_token_id": special_ids["eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_tokens,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": 1e-05,
        "torch_dtype": dtype,
        "transformers_version": "4.44.2",  # version that wrote "torch_dtype", "rope_theta" and "rope_scaling"
        "use_cache": True,
        "vocab_size": vocab_size,
    }


def _encoder_config(
    architecture: Architecture, shape: Shape, vocab_size: int, special_ids: Mapping[str, int], dtype: str
) -> dict[str, Any]:
    config_class, model_class = _CLASSES[architecture]
    settings: dict[str, Any] = {
        "architectures": [model_class.__name__],
        "dtype": dtype,
        "num_labels": 1,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "vocab_size": vocab_size,
        **_encoder_extras(architecture, shape),
        **_encoder_ids(architecture, special_ids),
    }
    written: dict[str, Any] = json.loads(config_class(**settings).to_json_string())
    return written


def _encoder_extras(architecture: Architecture, shape: Shape) -> dict[str, Any]:
    if architecture is Architecture.BERT:
        return {"max_position_embeddings": shape.max_tokens, "type_vocab_size": 2}
    if architecture is Architecture.XLM_ROBERTA:
        # Positions start at pad id + 1 = 2, so the published table has two more rows than the window has tokens.
        return {"max_position_embeddings": shape.max_tokens + 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    if architecture is Architecture.DEBERTA_V2:  # like DeBERTa-v3, from which mxbai-rerank v1 was trained
        return {
            "max_position_embeddings": shape.max_tokens,
            "max_relative_positions": -1,
            "norm_rel_ebd": "layer_norm",
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "position_buckets": shape.position_buckets,
            "relative_attention": True,
            "share_att_key": True,
            "type_vocab_size": 0,
        }
    return {
        "max_position_embeddings": shape.max_tokens,
        "local_attention": shape.local_tokens,
        "classifier_pooling": "mean",  # like gte-reranker-modernbert
    }


def _encoder_ids(architecture: Architecture, special_ids: Mapping[str, int]) -> dict[str, int]:
    if architecture is Architecture.MODERNBERT:  # each of ModernBERT's tokens cls and sep has two names
        names = {"cls": "cls", "bos": "cls", "sep": "sep", "eos": "sep", "pad": "pad"}
    elif architecture is Architecture.XLM_ROBERTA:
        names = {"bos": "bos", "eos": "eos", "pad": "pad"}
    else:
        names = {"pad": "pad"}
    return {f"{key}_token_id": special_ids[f"{name}_token_id"] for key, name in names.items()}
