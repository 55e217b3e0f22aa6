"""What NVIDIA has published of its two models, each figure with its source. Nothing here was measured by us.

Figures of one corpus are not comparable with those of another, nor those behind one first stage with those behind
another: these are averages over four public sets, behind dense embedding models.
"""

from typing import NamedTuple

__all__ = ["PUBLISHED", "PublishedFigure"]

_CARD = "NVIDIA, model card of nvidia/llama-nemotron-rerank-1b-v2 (the 1B's present name), section Evaluation Results"
_FOUR_SETS = "NQ, HotpotQA, FiQA, TechQA"


class PublishedFigure(NamedTuple):
    """One number of somebody else's."""

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
"""No other figure of the two models with a source that could be read was found."""
