"""How a pair longer than the model's window is made to fit: refused, cut, or ranked in windows. Pure."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["DEFAULT_OVERLAP_TOKENS", "MIN_WINDOW_TOKENS", "Fitting", "PassageWindows", "Truncate"]

DEFAULT_OVERLAP_TOKENS = 32
"""Of two windows: about two sentences, so that what stands on a seam stands whole in one of them."""

MIN_WINDOW_TOKENS = 16
"""Of a passage, beside the query: less is no window."""


class Truncate(StrEnum):
    """What happens to a pair longer than the window."""

    NONE = "NONE"
    END = "END"


@dataclass(frozen=True, slots=True)
class PassageWindows:
    """A long passage as overlapping windows, whose best logit is the passage's: MaxP (arXiv 1905.09217)."""

    max_per_passage: int
    """What stands behind that many windows is cut, or refused under `Truncate.NONE`."""
    tokens: int | None = None
    """Tokens of the passage in a window. Null: as many as fit beside the query."""
    overlap_tokens: int = DEFAULT_OVERLAP_TOKENS
    """Tokens that a window has in common with the one before; at most half of them are."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """What a request wants done with long passages."""

    truncate: Truncate = Truncate.END
    max_passage_tokens: int | None = None
    """A longer passage is cut there before anything else. Null: no limit but the window."""
    windows: PassageWindows | None = None
    """Null: a passage that does not fit is cut, or refused."""
