"""config.json and tensor names of architectures whose publishers ship their own modelling code.

Written down from the published code, because transformers' classes have other names for the same tensors.
"""

from collections.abc import Mapping
from typing import Any

from rerank_service.tools.random_checkpoints.shapes import Shape

__all__ = ["gte_config", "gte_shapes", "minicpm_config", "minicpm_shapes"]


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


def minicpm_config(shape: Shape, vocab_size: int, special_ids: Mapping[str, int], dtype: str) -> dict[str, Any]:
    """config.json of bge-reranker-v2-minicpm-layerwise, in another size."""
    return {
        "architectures": ["LayerWiseMiniCPMForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_minicpm_reranker.LayerWiseMiniCPMConfig",
            "AutoModel": "modeling_minicpm_reranker.LayerWiseMiniCPMModel",
            "AutoModelForCausalLM": "modeling_minicpm_reranker.LayerWiseMiniCPMForCausalLM",
        },
        "bos_token_id": special_ids["bos_token_id"],
        "dim_model_base": 256,
        "eos_token_id": special_ids["eos_token_id"],
        "head_multi": True,
        "head_type": "simple",
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.1,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_tokens,
        "model_type": "minicpm",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "scale_depth": 1.4,
        "scale_emb": 12,
        "start_layer": min(8, shape.num_layers - 1),
        "torch_dtype": dtype,
        "transformers_version": "4.38.1",
        "use_cache": False,
        "vocab_size": vocab_size,
    }


def minicpm_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of `LayerWiseMiniCPMForCausalLM` with simple heads."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        shapes |= {
            f"{name}.self_attn.q_proj.weight": (width, width),
            f"{name}.self_attn.k_proj.weight": (keys, width),
            f"{name}.self_attn.v_proj.weight": (keys, width),
            f"{name}.self_attn.o_proj.weight": (width, width),
            f"{name}.mlp.gate_proj.weight": (inner, width),
            f"{name}.mlp.up_proj.weight": (inner, width),
            f"{name}.mlp.down_proj.weight": (width, inner),
            f"{name}.input_layernorm.weight": (width,),
            f"{name}.post_attention_layernorm.weight": (width,),
        }
    num_heads = config["num_hidden_layers"] - config["start_layer"] + 1
    heads = {f"lm_head.{head}.linear_head.weight": (1, width) for head in range(num_heads)}
    return shapes | {"model.norm.weight": (width,)} | heads


def _with_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
