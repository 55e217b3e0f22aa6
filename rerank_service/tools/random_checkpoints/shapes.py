"""Architectures and sizes of the random checkpoints.

This module imports neither torch nor transformers, because the command line reads it to list the choices.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

__all__ = ["SHAPES", "Architecture", "Shape", "shape_of"]


class Architecture(StrEnum):
    """A model family, named by its `model_type` in config.json."""

    LLAMA_BIDIREC = "llama_bidirec"
    MISTRAL = "mistral"
    BERT = "bert"
    XLM_ROBERTA = "xlm_roberta"
    MODERNBERT = "modernbert"
    DEBERTA_V2 = "deberta_v2"
    QWEN3 = "qwen3"
    GTE = "gte"
    """Alibaba's own encoder, whose `model_type` is `new`."""
    MINICPM = "minicpm"
    """The layer-wise reranker of BAAI."""

    @property
    def is_encoder(self) -> bool:
        """Whether the family is an encoder, whose tokenizer joins query and passage."""
        return self not in (Architecture.LLAMA_BIDIREC, Architecture.MISTRAL, Architecture.QWEN3, Architecture.MINICPM)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Values of config.json that differ between the sizes of an architecture."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    """Number of key heads; null for encoders, where every head has its own keys."""

    head_dim: int | None = None
    """Size of an attention head; null: `hidden_size / num_heads`."""

    max_tokens: int
    """Longest input that the position scheme supports, in tokens."""

    model_max_length: int
    """Window written to tokenizer_config.json, in tokens."""

    vocab_size: int | None = None
    """Number of embedding rows; null: the vocabulary size of the generated tokenizer."""

    rope_factor: float = 32.0
    """Factor that stretches slow rotations; used only by llama3 scaling."""

    rope_original_tokens: int = 8192
    """Window before scaling; used only by llama3 scaling."""

    local_tokens: int = 128
    """Width of a local attention layer, in tokens; used only by ModernBERT."""

    position_buckets: int = 256
    """Number of buckets for distances between tokens; large distances share a bucket. Used only by DeBERTa."""

    is_tied: bool = True
    """Whether the output layer and the embedding share weights; shared weights are written once. Used only by Qwen3."""

    has_noise: bool = True
    """Whether norms differ from one and biases from zero: tests then notice a loader that drops or swaps a weight."""


_NO_LIMIT = 1000000000000000019884624838656
"""int(1e30), which transformers writes for a tokenizer without a window, as in Mistral-7B-v0.1."""


def _tiny(max_tokens: int, model_max_length: int | None = None, num_kv_heads: int | None = None) -> Shape:
    return Shape(
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        max_tokens=max_tokens,
        model_max_length=model_max_length or max_tokens,
        # 16 x 64 = 1024 tokens. With head_dim 16, some wavelengths lie below, between and above the two limits.
        rope_factor=16.0,
        rope_original_tokens=64,
        local_tokens=32,
        position_buckets=32,
    )


def _small(max_tokens: int, model_max_length: int | None = None, num_kv_heads: int | None = None) -> Shape:
    return Shape(
        hidden_size=256,
        intermediate_size=1024,
        num_layers=4,
        num_heads=8,
        num_kv_heads=num_kv_heads,
        max_tokens=max_tokens,
        model_max_length=model_max_length or max_tokens,
        rope_original_tokens=256,
    )


_LLAMA_1B = Shape(
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    max_tokens=131072,
    model_max_length=8192,
    vocab_size=128256,
    has_noise=False,
)
_MISTRAL_4B = Shape(
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    max_tokens=32768,
    model_max_length=_NO_LIMIT,
    vocab_size=32000,
    has_noise=False,
)


def _qwen3(hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int, is_tied: bool) -> Shape:
    return Shape(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        max_tokens=40960,
        model_max_length=131072,
        vocab_size=151669,
        is_tied=is_tied,
        has_noise=False,
    )


SHAPES: dict[Architecture, dict[str, Shape]] = {
    Architecture.LLAMA_BIDIREC: {
        "tiny": _tiny(1024, num_kv_heads=2),
        "small": _small(8192, num_kv_heads=4),
        "1b": _LLAMA_1B,
    },
    Architecture.MISTRAL: {
        "tiny": _tiny(1024, _NO_LIMIT, num_kv_heads=2),
        "small": _small(8192, _NO_LIMIT, num_kv_heads=4),
        "4b": _MISTRAL_4B,
    },
    Architecture.BERT: {"tiny": _tiny(512), "small": _small(512)},
    Architecture.XLM_ROBERTA: {"tiny": _tiny(512), "small": _small(512)},
    Architecture.MODERNBERT: {"tiny": _tiny(1024), "small": _small(8192)},
    Architecture.DEBERTA_V2: {"tiny": _tiny(512), "small": _small(512)},
    Architecture.GTE: {"tiny": _tiny(1024), "small": _small(8192)},
    Architecture.MINICPM: {"tiny": _tiny(1024, num_kv_heads=4), "small": _small(2048, num_kv_heads=8)},
    Architecture.QWEN3: {
        "tiny": replace(_tiny(1024, 4096, num_kv_heads=2), head_dim=32),
        "small": replace(_small(8192, 32768, num_kv_heads=4), head_dim=64),
        "0.6b": _qwen3(1024, 3072, 28, 16, is_tied=True),
        "4b": _qwen3(2560, 9728, 36, 32, is_tied=True),
        "8b": _qwen3(4096, 12288, 36, 32, is_tied=False),
    },
}


def shape_of(architecture: Architecture, size: str) -> Shape:
    """The shape for `size`. Raises `ValueError` with the supported sizes if no shape has this size."""
    sizes = SHAPES[Architecture(architecture)]
    if size not in sizes:
        raise ValueError(f"{architecture} has no size {size!r}; supported: {', '.join(sizes)}")
    return sizes[size]
