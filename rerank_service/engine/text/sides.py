"""The two sides of a model that encodes queries and passages separately: markers, lengths and places of each side."""

from collections.abc import Sequence
from dataclasses import dataclass

from rerank_service.engine.protocol import TokenSpan

__all__ = ["Side"]

_NOWHERE: TokenSpan = (0, 0)


@dataclass(frozen=True, slots=True)
class Side:
    """How the texts of one side, queries or passages, become token ids."""

    max_tokens: int
    """Longest text, special tokens and prefix included."""
    prefix_id: int | None = None
    """Token inserted after the first token; null: none."""
    mask_id: int | None = None
    """Token that fills shorter texts; null: texts are not filled."""
    hides_mask: bool = False
    """Whether attention does not see the tokens that fill a text."""
    prompt: str = ""
    """Text before each text."""
    lowers: bool = False
    """Whether texts are lowered first."""
    strips: bool = False
    """Whether white space around a text is removed, as sentence-transformers does before it tokenises."""

    @property
    def room(self) -> int:
        """Longest text without the prefix, special tokens included."""
        return self.max_tokens - (self.prefix_id is not None)

    def prepared(self, text: str) -> str:
        """A text as the tokenizer gets it."""
        text = self.prompt + (text.lower() if self.lowers else text)
        return text.strip() if self.strips else text

    def spans(self, offsets: Sequence[TokenSpan], text: str) -> list[TokenSpan]:
        """Places in `text` of the tokens that the engine keeps, from their places in the prepared text; the place of a
        token without characters of the text is empty."""
        spans = list(offsets) if len(offsets) <= self.room else [*offsets[: self.room - 1], offsets[-1]]
        if self.strips:
            # A lowered character may be longer than the character.
            places = [place for place, char in enumerate(text) for _ in (char.lower() if self.lowers else char)]
            before = len(self.prompt) or -(len(text) - len(text.lstrip()))
            spans = [_moved(span, before, places) for span in spans]
        if self.prefix_id is not None:
            spans.insert(1, _NOWHERE)
        filled = self.max_tokens - len(spans) if self.mask_id is not None else 0
        return spans + [_NOWHERE] * filled


def _moved(span: TokenSpan, before: int, places: Sequence[int]) -> TokenSpan:
    """A place in a prepared text as a place in the text. `before` is the length of the prompt or, negative, the length
    of the space that was removed; `places` has the character of each lowered character."""
    start, end = (max(0, place - before) for place in span)
    return (places[start], places[end - 1] + 1) if span[0] < span[1] and start < end else _NOWHERE
