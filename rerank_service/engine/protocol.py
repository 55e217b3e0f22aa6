"""What every engine is: pairs in, lengths known early, one float32 logit a pair out.

The scheduler works with this contract alone. No Ray, no HTTP here or in any engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["EncodedPair", "Engine", "PairT", "TokenIds", "Truncate"]

TokenIds = NDArray[np.int32]  # [L]


class Truncate(StrEnum):
    """What happens to a pair longer than the window."""

    NONE = "NONE"
    END = "END"


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPair:
    """A tokenised pair, cut to the window."""

    token_ids: TokenIds
    """Of the templated pair; of the passage alone in a late-interaction engine."""
    num_tokens: int
    """Tokens of query and passage with the special ones: what is billed and what a batch is filled by."""
    is_truncated: bool
    """Whether the window cut it."""


PairT = TypeVar("PairT", bound=EncodedPair)


class Engine(Protocol[PairT]):
    """A model on a device. `tokenise` may run in several threads at once, `score` in one at a time."""

    @property
    def window_tokens(self) -> int:
        """Longest pair in tokens."""
        ...

    @property
    def description(self) -> str:
        """Kind, device and precision, for logs."""
        ...

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[PairT]:
        """Pairs in the order of `passages`. Raises `PairTooLong` under `Truncate.NONE`."""
        ...

    def score(self, pairs: Sequence[PairT]) -> list[float]:
        """Float32 logits `[B]` in the order of `pairs`, unbounded, higher is more relevant; one forward
        pass's worth of pairs (the caller keeps the token budget)."""
        ...
