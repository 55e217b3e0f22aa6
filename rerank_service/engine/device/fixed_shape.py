"""One shape for all passes of an engine, so that a logit on a GPU does not depend on the other pairs of its batch.

On a GPU, libraries choose the kernel of a product or a sum by the number of its rows, and each kernel adds in its own
order. If every pass has the same shape, every pass runs the same kernels, and each row of a product depends only on its
own input, as long as no kernel divides the sums of some rows among several blocks (`cuda.forbid_divided_sums`).
Attention adds within a sequence only, and pooling in an order that depends only on the sequence's length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rerank_service.engine.protocol import EncodedPair

__all__ = ["FixedShape"]

_TOKENS_PER_SEQUENCE = 64
"""Tokens of a pass for each place of a sequence. Attention takes time for every place, used or not."""
_ALIGNMENT = 64

FixedPairT = TypeVar("FixedPairT", bound=EncodedPair)


@dataclass(frozen=True, slots=True)
class FixedShape:
    """The shape of every pass. A batch is padded with sequences of one token, then with tokens of no sequence."""

    num_tokens: int
    """Tokens of a pass, padding included."""
    num_sequences: int
    """Sequences of a pass, padding included."""
    max_length: int
    """Length that is announced as the longest in every pass."""

    @classmethod
    def for_batches(cls, batch_tokens: int, window_tokens: int) -> "FixedShape":
        """The smallest shape that holds batches of `batch_tokens`, and the longest pair."""
        most = max(batch_tokens, window_tokens)
        num_sequences = max(1, most // _TOKENS_PER_SEQUENCE)
        num_tokens = -(-(most + num_sequences) // _ALIGNMENT) * _ALIGNMENT
        return cls(num_tokens, num_sequences, max(128, 1 << (window_tokens - 1).bit_length()))

    def parts(self, pairs: Sequence[FixedPairT]) -> Iterator[Sequence[FixedPairT]]:
        """Divides a batch, in its order, into batches that fit in the shape."""
        start = num_tokens = 0
        for index, pair in enumerate(pairs):
            # Each unused place also takes a token.
            unused = self.num_sequences - (index - start + 1)
            if index > start and (unused < 0 or num_tokens + pair.num_tokens + unused > self.num_tokens):
                yield pairs[start:index]
                start, num_tokens = index, 0
            num_tokens += pair.num_tokens
        yield pairs[start:]
