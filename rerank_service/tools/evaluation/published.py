"""Figures that NVIDIA published about its two models, with sources. This project measured none of them.

Figures are comparable only on the same corpus and with the same first stage. The figures below are averages over
four public sets, with candidates from dense embedding models.
"""

from typing import NamedTuple

__all__ = ["PUBLISHED", "PublishedFigure"]

_CARD = "NVIDIA, model card of nvidia/llama-nemotron-rerank-1b-v2 (the 1B's current name), section Evaluation Results"
_FOUR_SETS = "NQ, HotpotQA, FiQA, TechQA"


class PublishedFigure(NamedTuple):
    """A published figure, with its source."""

    model: str
    first_stage: str
    measure: str
    collections: str
    value: float
    source: str


PUBLISHED = (
    PublishedFigure(
        "nvidia/llama-3.2-nv-rerankqa-1b-v2", "llama-3.2-nv-embedqa-1b-v2", "recall@5", _FOUR_SETS, 0.7364, _CARD
    ),
    PublishedFigure("nvidia/nv-rerankqa-mistral-4b-v3", "nv-embedqa-e5-v5", "recall@5", _FOUR_SETS, 0.7545, _CARD),
    PublishedFigure("BM25", "none", "recall@5", _FOUR_SETS, 0.4467, _CARD),
)
"""All published figures whose source could be read."""
