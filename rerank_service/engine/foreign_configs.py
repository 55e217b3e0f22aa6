"""Reads config.json of checkpoints that ship their own modelling code, for equal classes of transformers.

Runs no code of a checkpoint. A setting that the class would ignore is refused, because the model would load and rank
wrongly. The tensors are compared by name and shape when they are loaded (see `loading.load_weights`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedConfig

from rerank_service.errors import CheckpointError

__all__ = ["FOREIGN_CLASSIFIERS"]

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
