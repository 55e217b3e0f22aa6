"""Reads config.json of checkpoints that ship their own modelling code, for equal classes of transformers.

Runs no code of a checkpoint. A setting that the class would ignore is refused, because the model would load and rank
wrongly. The tensors are compared by name and shape when they are loaded (see `loading.load_weights`).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedConfig

from rerank_service.errors import CheckpointError

__all__ = ["FOREIGN_CLASSIFIERS", "LAYERWISE_MINICPM", "layerwise_minicpm"]

LAYERWISE_MINICPM = "LayerWiseMiniCPMForCausalLM"
"""Class in `architectures` of BAAI/bge-reranker-v2-minicpm-layerwise, whose `model_type` is `minicpm`."""

_GTE_KEYS = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "type_vocab_size",
    "vocab_size",
)
_GTE_COMPUTES = {"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "logn_attention_scale": False}
_MINICPM_KEYS = (
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "vocab_size",
)
_MINICPM_COMPUTES = {"head_type": "simple", "head_multi": True, "rope_scaling": None, "pretraining_tp": 1}


def _gte(raw: Mapping[str, Any]) -> PreTrainedConfig:
    """For transformers' `Gte` classes. Source: `NewConfig` and `NewForSequenceClassification` of Alibaba-NLP/new-impl.

    The published NTK scaling has the frequencies `(theta * factor) ** (-2i / d) / factor ** (2 / d)` at every length.
    These are the frequencies of transformers' linear scaling with the base `theta * factor`, in the same operations.
    """
    from transformers import GteConfig  # transformers imports a family's module only when it is used

    for key, computed in _GTE_COMPUTES.items():
        _require(raw, key, computed)
    scaling, theta = raw.get("rope_scaling"), float(_stated(raw, "rope_theta"))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        if scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None:
            raise _not_computed("rope_scaling", scaling, "type ntk without mixed_b")
        factor, head_size = float(scaling["factor"]), raw["hidden_size"] // raw["num_attention_heads"]
        rope = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head_size)}
    labels = {key: raw[key] for key in ("id2label", "label2id", "num_labels") if key in raw}
    return GteConfig(**{key: _stated(raw, key) for key in _GTE_KEYS}, rope_parameters=rope, **labels)


FOREIGN_CLASSIFIERS: dict[str, Callable[[Mapping[str, Any]], PreTrainedConfig]] = {"new": _gte}
"""Reader of config.json for each `model_type` of sequence classifiers. Each may raise `CheckpointError`."""


def layerwise_minicpm(raw: Mapping[str, Any], num_layers: int) -> PreTrainedConfig:
    """For transformers' `GraniteModel`, with the first `num_layers` layers.

    Source: `LayerWiseMiniCPMModel` of FlagEmbedding at commit 99dfb3d, inference/reranker/decoder_only/models. MiniCPM
    is a Llama whose embeddings and residuals are multiplied by constants, which Granite's class also does.
    """
    from transformers import GraniteConfig

    for key, computed in _MINICPM_COMPUTES.items():
        _require(raw, key, computed)
    return GraniteConfig(
        **{key: _stated(raw, key) for key in _MINICPM_KEYS},
        num_hidden_layers=num_layers,
        pad_token_id=raw.get("pad_token_id"),
        embedding_multiplier=float(_stated(raw, "scale_emb")),
        residual_multiplier=_stated(raw, "scale_depth") / math.sqrt(raw["num_hidden_layers"]),
        attention_multiplier=(raw["hidden_size"] // raw["num_attention_heads"]) ** -0.5,
        rope_parameters={"rope_type": "default", "rope_theta": float(_stated(raw, "rope_theta"))},
        use_cache=False,
    )


def _stated(raw: Mapping[str, Any], key: str) -> Any:
    if key not in raw:
        raise CheckpointError(f"config.json does not state {key}, and this service assumes none for {_class_of(raw)}")
    return raw[key]


def _require(raw: Mapping[str, Any], key: str, computed: Any) -> None:
    value = raw.get(key, computed)
    if value != computed:
        raise _not_computed(key, value, repr(computed))


def _not_computed(key: str, value: Any, computed: str) -> CheckpointError:
    return CheckpointError(
        f"config.json states {key}: {value!r}, which no class of transformers computes for this model; only {computed} "
        "can run"
    )


def _class_of(raw: Mapping[str, Any]) -> str:
    return ", ".join(map(str, raw.get("architectures") or [])) or str(raw.get("model_type"))
