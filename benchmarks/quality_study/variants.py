"""Variants of the study, the comparisons between them, and the sets."""

from dataclasses import dataclass, field
from typing import NamedTuple

from rerank_service.config import Dtype, LateInteractionHead
from rerank_service.messages import PassageWindows

__all__ = ["DEFAULT", "SECTIONS", "SETS", "Comparison", "ScorerVariant", "StudySet"]

COSINE = LateInteractionHead(cosine_weight=1, maxsim_weight=0, bias=0)
DEFAULT_HEAD = LateInteractionHead()
MAXSIM = LateInteractionHead(cosine_weight=0, maxsim_weight=1, bias=0)


@dataclass(frozen=True)
class ScorerVariant:
    """Settings of the embedded model."""

    label: str = field(compare=False)
    dtype: Dtype = Dtype.INT8
    window_tokens: int | None = None
    """Window in tokens; null: the checkpoint's own window of 256 tokens."""
    head: LateInteractionHead = DEFAULT_HEAD
    windows: PassageWindows | None = None
    is_shuffled: bool = False
    """Whether pairs are scored in random order, in small batches, without a cache."""


class Comparison(NamedTuple):
    """A variant, and the variant that it is compared with."""

    variant: ScorerVariant
    base: ScorerVariant


class StudySet(NamedTuple):
    """A collection and the part of it that is ranked."""

    name: str
    top_k: int
    sections: tuple[str, ...]
    max_queries: int | None = None
    joined: int | None = None
    """Number of passages joined into each long passage; null: passages are not joined."""

    @property
    def label(self) -> str:
        parts = [f"{self.joined} joined"] if self.joined else []
        return ", ".join([self.name, *parts, *([f"{self.max_queries} queries"] if self.max_queries else [])])


SETS = (
    StudySet("noveleval", 20, ("scorers", "truncation", "long", "order")),
    StudySet("covid-faq", 100, ("scorers", "truncation", "long")),
    StudySet("nq-heldout", 20, ("scorers", "truncation"), max_queries=300),
    StudySet("pubmedqa-l", 20, ("scorers", "truncation", "long"), max_queries=300),
    StudySet("covid-faq", 27, ("long",), joined=8),
    StudySet("nq-heldout", 10, ("long",), max_queries=100, joined=8),
    StudySet("covid-faq", 20, ("order",), max_queries=50),
)

DEFAULT = ScorerVariant("the default, int8")
_BY_DTYPE = {
    Dtype.FLOAT32: ScorerVariant("the default, float32", Dtype.FLOAT32),
    Dtype.BFLOAT16: ScorerVariant("the default, bfloat16", Dtype.BFLOAT16),
    Dtype.INT8: DEFAULT,
}

SECTIONS: dict[str, tuple[Comparison, ...]] = {
    "scorers": tuple(
        Comparison(variant, DEFAULT)
        for variant in (
            ScorerVariant("cosine, float32", Dtype.FLOAT32, head=COSINE),
            ScorerVariant("MaxSim, float32", Dtype.FLOAT32, head=MAXSIM),
            *_BY_DTYPE.values(),
        )
    ),
    "truncation": tuple(
        Comparison(variant, DEFAULT)
        for variant in (
            ScorerVariant("cut at 64", window_tokens=64),
            ScorerVariant("cut at 128", window_tokens=128),
            ScorerVariant("cut at 256, the default"),
            ScorerVariant("cut at 512", window_tokens=512),
        )
    ),
    "long": tuple(
        Comparison(variant, DEFAULT)
        for variant in (
            ScorerVariant("cut at 256, the default"),
            ScorerVariant("cut at 512", window_tokens=512),
            ScorerVariant("windows of 250, no overlap", windows=PassageWindows(64, overlap_tokens=0)),
            ScorerVariant("windows of 250, overlap 32", windows=PassageWindows(64)),
            ScorerVariant("windows of 250, overlap 125", windows=PassageWindows(64, overlap_tokens=125)),
            ScorerVariant("windows of 128, overlap 32", windows=PassageWindows(64, tokens=128)),
            ScorerVariant("windows of 64, overlap 16", windows=PassageWindows(64, tokens=64, overlap_tokens=16)),
        )
    ),
    "order": tuple(
        Comparison(ScorerVariant(f"{dtype}, shuffled, small batches", dtype, is_shuffled=True), variant)
        for dtype, variant in _BY_DTYPE.items()
    ),
}
