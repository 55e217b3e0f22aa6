"""The extension `explain` of NVIDIA's API: what a request may ask for, and the explanations in the answer."""

from typing import Annotated, Literal

from pydantic import Field

from rerank_service import messages
from rerank_service.http.dialects.reading import JsonNumber, Wire, invalid
from rerank_service.messages import Explanation

__all__ = ["ExplainOptions", "ExplanationEntry", "checked_top_n", "explanation_entry"]


class ExplainOptions(Wire):
    """Which passages of the ranking to explain."""

    top_n: Annotated[int, Field(ge=1), JsonNumber]
    """How many of the best passages to explain."""


class Span(Wire):
    """A part of a text as it was sent, in Unicode code points."""

    start: int
    end: int
    """Index after the last code point."""


class TokenMatch(Wire):
    """A token of the query, and the token of the passage that is most similar to it."""

    query: Span
    passage: Span | None
    """Null: the model's own token without characters, such as CLS."""
    similarity: float
    """Cosine of the two tokens' states."""


class TokenAlignment(Wire):
    """Explains a passage's logit by the token matches that the model itself computes (late interaction)."""

    index: int
    """Original index in the request `passages` array."""
    method: Literal["token_alignment"] = "token_alignment"
    is_approximate: Literal[False] = False
    matches: tuple[TokenMatch, ...]
    """One entry per token of the query, in order."""


class SentenceContribution(Wire):
    """A sentence of the passage, or several neighbouring sentences."""

    start: int
    """First code point in the passage."""
    end: int
    """Index after the last code point."""
    contribution: float | None
    """Logit of the passage minus its logit without the sentence. Null: the passage has no other sentence."""


class LeaveOneSentenceOut(Wire):
    """Explains a passage's logit by leaving out one sentence at a time. Approximate, because sentences also affect the
    logit together."""

    index: int
    """Original index in the request `passages` array."""
    method: Literal["leave_one_sentence_out"] = "leave_one_sentence_out"
    is_approximate: Literal[True] = True
    sentences: tuple[SentenceContribution, ...]
    """At most 16, in order."""


ExplanationEntry = Annotated[TokenAlignment | LeaveOneSentenceOut, Field(discriminator="method")]


def checked_top_n(wanted: ExplainOptions, limit: int) -> int:
    """How many passages to explain. Raises `InvalidRequest` if this number exceeds `limit`."""
    if limit == 0:
        message = "explain is turned off on this service (limits.max_explained_passages is 0); leave it out"
        raise invalid(("explain",), message, "explanations_turned_off")
    if wanted.top_n > limit:
        message = f"explain.top_n is {wanted.top_n}; at most {limit} are allowed (limits.max_explained_passages)"
        raise invalid(("explain", "top_n"), message, "too_many_explanations")
    return wanted.top_n


def explanation_entry(explanation: Explanation) -> TokenAlignment | LeaveOneSentenceOut:
    """An explanation in the form of the answer."""
    if isinstance(explanation, messages.TokenAlignment):
        matches = [
            TokenMatch(
                query=_span(match.query), passage=match.passage and _span(match.passage), similarity=match.similarity
            )
            for match in explanation.matches
        ]
        return TokenAlignment(index=explanation.index, matches=tuple(matches))
    sentences = [
        SentenceContribution(start=start, end=end, contribution=contribution)
        for (start, end), contribution in explanation.sentences
    ]
    return LeaveOneSentenceOut(index=explanation.index, sentences=tuple(sentences))


def _span(place: messages.Span) -> Span:
    return Span(start=place[0], end=place[1])
