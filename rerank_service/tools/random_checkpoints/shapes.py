"""Which checkpoints can be made, and the numbers that set their sizes.

It must not import torch or transformers: the command line reads it only to offer choices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

__all__ = ["SHAPES", "Architecture", "Shape", "shape_of"]


class Architecture(StrEnum):
    """A model family, by the `model_type` users meet in a config.json."""

    LLAMA_BIDIREC = "llama_bidirec"
    MISTRAL = "mistral"
    BERT = "bert"
    XLM_ROBERTA = "xlm_roberta"
    MODERNBERT = "modernbert"
    DEBERTA_V2 = "deberta_v2"
    QWEN3 = "qwen3"

    @property
    def is_encoder(self) -> bool:
        """Whether the family reads query and passage as a pair, as its tokenizer joins them."""
        return self not in (Architecture.LLAMA_BIDIREC, Architecture.MISTRAL, Architecture.QWEN3)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers of a config.json in which the sizes of one architecture differ."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    """Null for the encoders: every head has its own keys."""

    head_dim: int | None = None
    """Null: hidden_size / num_heads."""

    max_tokens: int
    """The longest input the position scheme reaches, in tokens."""

    model_max_length: int
    """The window written to tokenizer_config.json."""

    vocab_size: int | None = None
    """Rows of the embedding; null means as many as the tokenizer written beside it has."""

    rope_factor: float = 32.0
    """llama3 scaling only: how many times longer the slow rotations become."""

    rope_original_tokens: int = 8192
    """llama3 scaling only: the window before scaling."""

    local_tokens: int = 128
    """ModernBERT only: the width of a local attention layer."""

    position_buckets: int = 256
    """DeBERTa only: how many distances between tokens it tells apart; further ones share a bucket."""

    is_tied: bool = True
    """Qwen3 only: the vocabulary's rows at the end are those of the embedding, and are not written twice."""

    has_noise: bool = True
    """Norms and biases differ from one and zero, so that a loader which drops or mixes one is caught."""


_NO_LIMIT = 1000000000000000019884624838656
"""int(1e30), what transformers writes when a tokenizer names no window; Mistral-7B-v0.1 publishes it."""


def _tiny(max_tokens: int, model_max_length: int | None = None, num_kv_heads: int | None = None) -> Shape:
    return Shape(
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        max_tokens=max_tokens,
        model_max_length=model_max_length or max_tokens,
        # 16 x 64 = 1024 tokens; with head_dim 16 the wavelengths fall on both sides of the two limits.
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
    Architecture.QWEN3: {
        "tiny": replace(_tiny(1024, 4096, num_kv_heads=2), head_dim=32),
        "small": replace(_small(8192, 32768, num_kv_heads=4), head_dim=64),
        "0.6b": _qwen3(1024, 3072, 28, 16, is_tied=True),
        "4b": _qwen3(2560, 9728, 36, 32, is_tied=True),
        "8b": _qwen3(4096, 12288, 36, 32, is_tied=False),
    },
}


def shape_of(architecture: Architecture, size: str) -> Shape:
    """The numbers of one size; ValueError names the supported ones otherwise."""
    sizes = SHAPES[Architecture(architecture)]
    if size not in sizes:
        raise ValueError(f"{architecture} has no size {size!r}; supported: {', '.join(sizes)}")
    return sizes[size]
