"""config.json and tensor names of architectures whose publishers ship their own modelling code.

Written down from the published code, because transformers' classes have other names for the same tensors.
"""

from collections.abc import Mapping
from typing import Any

from rerank_service.tools.random_checkpoints.shapes import Shape

__all__ = ["gte_config", "gte_shapes"]


def gte_config(shape: Shape, vocab_size: int, special_ids: Mapping[str, int], dtype: str) -> dict[str, Any]:
    """config.json of gte-multilingual-reranker-base, in another size."""
    remote = "Alibaba-NLP/new-impl--modeling.New"
    return {
        "architectures": ["NewForSequenceClassification"],
        "attention_probs_dropout_prob": 0.0,
        "auto_map": {
            "AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
            "AutoModel": f"{remote}Model",
            "AutoModelForSequenceClassification": f"{remote}ForSequenceClassification",
        },
        "classifier_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": shape.hidden_size,
        "id2label": {"0": "LABEL_0"},
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "label2id": {"LABEL_0": 0},
        "layer_norm_eps": 1e-12,
        "layer_norm_type": "layer_norm",
        "logn_attention_clip1": False,
        "logn_attention_scale": False,
        "max_position_embeddings": shape.max_tokens,
        "model_type": "new",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "pack_qkv": True,
        "pad_token_id": special_ids["pad_token_id"],
        "position_embedding_type": "rope",
        "rope_scaling": {"factor": 8.0, "type": "ntk"},
        "rope_theta": 20000,
        "torch_dtype": dtype,
        "transformers_version": "4.39.1",
        "type_vocab_size": 1,
        "unpad_inputs": False,
        "use_memory_efficient_attention": False,
        "vocab_size": vocab_size,
    }


def gte_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of `NewForSequenceClassification` with one label."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "new.embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "new.embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        **_with_bias("new.embeddings.LayerNorm", width),
    }
    for layer in range(config["num_hidden_layers"]):
        name = f"new.encoder.layer.{layer}"
        shapes |= {
            **_with_bias(f"{name}.attention.qkv_proj", 3 * width, width),
            **_with_bias(f"{name}.attention.o_proj", width, width),
            f"{name}.mlp.up_gate_proj.weight": (2 * inner, width),
            **_with_bias(f"{name}.mlp.down_proj", width, inner),
            **_with_bias(f"{name}.attn_ln", width),
            **_with_bias(f"{name}.mlp_ln", width),
        }
    return shapes | _with_bias("new.pooler.dense", width, width) | _with_bias("classifier", 1, width)


def _with_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
