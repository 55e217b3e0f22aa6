"""Explanations of ranked passages, and their parser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Explanation", "SentenceContribution", "Span", "TokenMatch", "read_explanations"]


class Span(NamedTuple):
    """A part of a text: `text[start:end]`."""

    start: int
    end: int

    def of(self, text: str) -> str:
        """This part of `text`."""
        return text[self.start : self.end]


class TokenMatch(NamedTuple):
    """A token of the query, and the token of the passage that is most similar to it."""

    query: Span
    passage: Span | None
    """None: the model's own token without characters, such as CLS."""
    similarity: float
    """Cosine of the two tokens' states."""


class SentenceContribution(NamedTuple):
    """A sentence of the passage, or several neighbouring sentences."""

    span: Span
    contribution: float | None
    """Logit of the passage minus its logit without the sentence. None: the passage has no other sentence."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Explains a passage's logit by `matches` or by `sentences`, depending on the model."""

    method: str
    """`token_alignment` for late interaction, `leave_one_sentence_out` for other models."""
    is_approximate: bool
    """Whether the parts only approximate the model's computation."""
    matches: tuple[TokenMatch, ...] = ()
    """One entry per token of the query, in order."""
    sentences: tuple[SentenceContribution, ...] = ()
    """All sentences, in the order of the passage."""


def read_explanations(entries: Sequence[Mapping[str, Any]]) -> dict[int, Explanation]:
    """Explanations by the passages' indices. Raises `KeyError`, `TypeError` or `ValueError` if the answer is
    malformed."""
    return {
        int(entry["index"]): Explanation(
            str(entry["method"]),
            bool(entry["is_approximate"]),
            tuple(
                TokenMatch(_span(match["query"]), match["passage"] and _span(match["passage"]), match["similarity"])
                for match in entry.get("matches", ())
            ),
            tuple(SentenceContribution(_span(part), part["contribution"]) for part in entry.get("sentences", ())),
        )
        for entry in entries
    }


def _span(place: Mapping[str, Any]) -> Span:
    return Span(int(place["start"]), int(place["end"]))
