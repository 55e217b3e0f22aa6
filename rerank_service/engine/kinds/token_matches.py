"""Reports which passage token gave each query token its maximum, as places in the texts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from rerank_service.engine.device import cuda
from rerank_service.engine.kinds.token_vectors import TokenVectors
from rerank_service.engine.protocol import TokenSpan
from rerank_service.engine.text.sides import Side
from rerank_service.messages import TokenMatch

if TYPE_CHECKING:
    from rerank_service.engine.kinds.late_interaction import LateInteractionPair

__all__ = ["MatchRecord", "TokenAligner", "words"]


class MatchRecord:
    """The best match of each query token that MaxSim counts, on the device."""

    __slots__ = ("similarities", "tokens")

    def __init__(self) -> None:
        self.similarities = self.tokens = torch.empty(0)

    def fill(self, similarities: torch.Tensor, tokens: torch.Tensor) -> None:
        """Records the largest cosine of each query token, and the passage token that has it; both `[Nq]`."""
        self.similarities, self.tokens = similarities, tokens


class TokenAligner:
    """The aligner of a late-interaction engine."""

    def __init__(self, tokenizer: Tokenizer, query: Side, passage: Side, vectors: TokenVectors | None) -> None:
        """`vectors` is null for a sentence encoder."""
        self._tokenizer = tokenizer
        self._query, self._passage = query, passage
        self._vectors = vectors

    def recording(self, pairs: Sequence["LateInteractionPair"]) -> list["LateInteractionPair"]:
        """See `Aligner`."""
        return [replace(pair, record=MatchRecord()) for pair in pairs]

    @cuda.device_errors()
    def matches(
        self, query: str, passages: Sequence[str], pairs: Sequence["LateInteractionPair"]
    ) -> list[list[TokenMatch]]:
        """See `Aligner`. Leaves out query tokens without characters."""
        query_spans, *passages_spans = self._spans([query, *passages], pairs)
        records = [pair.record for pair in pairs if pair.record is not None]
        tokens = torch.stack([record.tokens for record in records]).tolist()  # one wait for the device for all pairs
        similarities = torch.stack([record.similarities for record in records]).tolist()
        found = []
        for spans, *matches in zip(passages_spans, tokens, similarities, strict=True):
            best = zip(query_spans, *matches, strict=True)
            found.append(
                [
                    TokenMatch(word, _with_characters(spans[token]), cosine)
                    for word, token, cosine in best
                    if _with_characters(word)
                ]
            )
        return found

    def _spans(self, texts: Sequence[str], pairs: Sequence["LateInteractionPair"]) -> list[list[TokenSpan]]:
        """Places of the tokens that count, of the query and then of each passage."""
        sides = [self._query, *[self._passage] * len(pairs)]
        encodings = self._tokenizer.encode_batch([side.prepared(text) for side, text in zip(sides, texts, strict=True)])
        query, *passages = (
            side.spans(encoding.offsets, text) for side, encoding, text in zip(sides, encodings, texts, strict=True)
        )
        if self._vectors is None:
            return [query[words(len(query))], *passages]
        kept = [self._vectors.kept(pair.token_ids) for pair in pairs]
        return [query, *([spans[place] for place in places] for spans, places in zip(passages, kept, strict=True))]


def words(num_tokens: int) -> slice:
    """The tokens of a sentence encoder's query that MaxSim counts: all but the first and last (CLS, SEP), or all if
    there are no others."""
    return slice(1, num_tokens - 1) if num_tokens > 2 else slice(num_tokens)


def _with_characters(span: TokenSpan) -> TokenSpan | None:
    return span if span[0] < span[1] else None
