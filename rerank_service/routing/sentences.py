"""Splits a passage into sentences, by punctuation and line breaks.

No language's abbreviations are known: "Dr. Who" is split after "Dr.".
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

from rerank_service.messages import Span

__all__ = ["split_sentences"]

_LONG_SENTENCE = 400
"""Characters beyond which a sentence is cut between words; most such text has no punctuation."""

# A run of closing marks is tried only from its start, and its quantifiers are possessive: the time is linear in the
# length of the text.
_SENTENCE_END = re.compile(
    r"""(?<![.!?…؟۔।॥])[.!?…؟۔।॥]++["'”’»)\]]*+(?=\s|$)"""  # a space must follow: 3.14 is no end
    r"|[。！？｡]++[」』”’）)]*+"  # Chinese and Japanese have no spaces
    r"|[\n\r\u2028\u2029]++"
)
_SPACE = re.compile(r"\s++")


def split_sentences(text: str, max_sentences: int) -> list[Span]:
    """Places of the sentences of `text`, in order, without the white space around them.

    A sentence of over 400 characters is cut into even parts between words. If there are more than `max_sentences`,
    neighbours are joined to parts of about equal length.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    sentences = []
    for start, end in pairwise((0, *ends, len(text))):
        stripped = _without_spaces(text, start, end)
        sentences += [_without_spaces(text, *part) for part in _even_parts(text, *stripped)]
    sentences = [(start, end) for start, end in sentences if start < end]
    return sentences if len(sentences) <= max_sentences else _joined(sentences, max_sentences)


def _without_spaces(text: str, start: int, end: int) -> Span:
    part = text[start:end].lstrip()
    return end - len(part), end - len(part) + len(part.rstrip())


def _even_parts(text: str, start: int, end: int) -> Iterator[Span]:
    """Cuts a text into parts of about equal length, about 400 characters at most. Each cut is at the first space after
    the even length, or at that length if the next part has no space."""
    num_parts = -(-(end - start) // _LONG_SENTENCE) or 1
    begin = start
    for number in range(1, num_parts):
        target, limit = (start + (end - start) * place // num_parts for place in (number, number + 1))
        space = _SPACE.search(text, target, limit)
        cut = space.start() if space else target
        yield begin, cut
        begin = cut
    yield begin, end


def _joined(sentences: Sequence[Span], limit: int) -> list[Span]:
    """Divides the text into `limit` parts of equal length, and joins the sentences whose middle is in the same part."""
    first, last = sentences[0][0], sentences[-1][1]

    def part(sentence: Span) -> int:
        return (sum(sentence) - 2 * first) * limit // (2 * (last - first))

    groups = [list(group) for _, group in groupby(sentences, key=part)]
    return [(group[0][0], group[-1][1]) for group in groups]
