"""From passages to the pairs that are scored for them: one each, or several windows of a long one.

Works on any engine. A passage that fits is the same pair with windows and without, so its logit is, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Generic

from rerank_service.engine.protocol import Engine, PairT, TokenSpan
from rerank_service.errors import PairTooLong
from rerank_service.messages import MIN_WINDOW_TOKENS, Fitting, PassageWindows, Truncate

__all__ = ["EncodedPassages", "encode_passages", "shorten", "split"]

_MARGIN_TOKENS = 4
"""A window that starts within a text may have a token or two more than the same words had in the whole."""

_MAX_WORD_TOKENS = 8
"""A longer run of tokens without a seam, as in Chinese, is cut anywhere."""


@dataclass(frozen=True, slots=True)
class EncodedPassages(Generic[PairT]):
    """Pairs of a request's passages, passage by passage."""

    pairs: Sequence[PairT]
    num_windows: Sequence[int]
    """Pairs of each passage, one or more."""
    is_truncated: tuple[bool, ...]
    """Whether a part of the passage, or of the query, is in no pair of it."""
    is_unscored: tuple[bool, ...]
    """Whether no token of the passage is in any pair of it, though it has some."""

    @classmethod
    def joined(cls, parts: Sequence["EncodedPassages[PairT]"]) -> "EncodedPassages[PairT]":
        """Of several queries, one after the other."""
        return cls(
            [pair for part in parts for pair in part.pairs],
            [count for part in parts for count in part.num_windows],
            tuple(cut for part in parts for cut in part.is_truncated),
            tuple(unscored for part in parts for unscored in part.is_unscored),
        )

    @property
    def num_tokens(self) -> tuple[int, ...]:
        """Of each passage's pairs."""
        return tuple(sum(pair.num_tokens for pair in self.pairs[start:end]) for start, end in self._slices())

    def best(self, logits: Sequence[float]) -> tuple[float, ...]:
        """Each passage's highest logit, of one a pair."""
        return tuple(max(logits[start:end]) for start, end in self._slices())

    def _slices(self) -> Sequence[tuple[int, int]]:
        return list(pairwise((0, *accumulate(self.num_windows))))


def encode_passages(
    engine: Engine[PairT], query: str, passages: Sequence[str], fitting: Fitting
) -> EncodedPassages[PairT]:
    """What an engine scores for `passages`. Raises `PairTooLong` under `Truncate.NONE`."""
    limit, windows = fitting.max_passage_tokens, fitting.windows
    if windows is not None and windows.max_per_passage == 1:
        windows = None
    shortened = passages if limit is None else shorten(engine, passages, limit)
    truncate = fitting.truncate if windows is None else Truncate.END
    pairs = engine.tokenise(query, shortened, truncate)
    is_cut = [pair.is_truncated for pair in pairs]
    groups = [[pair] for pair in pairs]
    if windows is not None:
        for index, (group, is_incomplete) in _window_pairs(engine, query, shortened, pairs, windows).items():
            groups[index], is_cut[index] = group, is_incomplete
        if fitting.truncate is Truncate.NONE and True in is_cut:
            raise _too_long(engine, query, shortened, is_cut.index(True), groups)
    return EncodedPassages(
        pairs=[pair for group in groups for pair in group],
        num_windows=[len(group) for group in groups],
        is_truncated=tuple(
            cut or short != passage for cut, short, passage in zip(is_cut, shortened, passages, strict=True)
        ),
        is_unscored=tuple(all(pair.is_unscored for pair in group) for group in groups),
    )


def shorten(engine: Engine[PairT], passages: Sequence[str], max_tokens: int) -> list[str]:
    """Each passage up to the end of its token number `max_tokens`; those that have no more are not touched."""
    shortened = list(passages)
    candidates = [index for index, text in enumerate(passages) if _num_bytes(text) > max_tokens]
    spans = engine.token_spans([passages[index] for index in candidates])
    for index, tokens in zip(candidates, spans, strict=True):
        if len(tokens) > max_tokens:
            shortened[index] = passages[index][: tokens[max_tokens - 1][1]]
    return shortened


def split(text: str, spans: Sequence[TokenSpan], tokens: int, windows: PassageWindows) -> tuple[list[str], bool]:
    """Windows of at most `tokens` tokens, cut between words where there is a seam, and whether they are all of `text`.

    The last one is as long as the others: it starts earlier instead.
    """
    overlap = min(windows.overlap_tokens, tokens // 2)
    texts: list[str] = []
    start = 0
    while start + tokens < len(spans):
        end = _seam_before(text, spans, start + tokens, start)
        texts.append(text[_begin(spans, start) : spans[end - 1][1]].lstrip())
        if len(texts) == windows.max_per_passage:
            return texts, False
        start = max(_seam_before(text, spans, end - overlap, start), start + 1)
    if texts:  # what stands between `start` and a seam behind it must not be lost
        start = min(start, _seam_after(text, spans, len(spans) - tokens))
    return [*texts, text[_begin(spans, start) :].lstrip()], True


def _window_pairs(
    engine: Engine[PairT], query: str, passages: Sequence[str], pairs: Sequence[PairT], windows: PassageWindows
) -> dict[int, tuple[list[PairT], bool]]:
    """By index of each passage that needs several: its windows' pairs, and whether anything is left out."""
    room = engine.passage_room(query)
    wanted = min(windows.tokens or room, room - _MARGIN_TOKENS)
    if wanted < MIN_WINDOW_TOKENS:  # the query leaves no room: the passage is cut
        return {}
    most = windows.tokens or engine.window_tokens
    long = [index for index, pair in enumerate(pairs) if pair.is_passage_cut or len(pair.token_ids) > most]
    result = {}
    for index, spans in zip(long, engine.token_spans([passages[index] for index in long]), strict=True):
        if len(spans) > (wanted if pairs[index].is_passage_cut else most):
            texts, is_complete = split(passages[index], spans, wanted, windows)
            group = engine.tokenise(query, texts, Truncate.END)
            result[index] = group, not is_complete or any(pair.is_truncated for pair in group)
    return result


def _seam_before(text: str, spans: Sequence[TokenSpan], token: int, start: int) -> int:
    """The last token up to `token` that opens a word, behind `start`; `token` itself where none is near."""
    nearest = range(token, max(start, token - _MAX_WORD_TOKENS), -1)
    return next((index for index in nearest if _opens_word(text, spans, index)), token)


def _seam_after(text: str, spans: Sequence[TokenSpan], token: int) -> int:
    nearest = range(token, min(len(spans), token + _MAX_WORD_TOKENS))
    return next((index for index in nearest if _opens_word(text, spans, index)), token)


def _opens_word(text: str, spans: Sequence[TokenSpan], token: int) -> bool:
    begin, end_before = spans[token][0], spans[token - 1][1]
    return begin >= end_before and not (text[begin - 1].isalnum() and text[begin].isalnum())


def _too_long(
    engine: Engine[PairT], query: str, passages: Sequence[str], index: int, groups: Sequence[Sequence[PairT]]
) -> PairTooLong:
    if any(pair.is_truncated for pair in groups[index]):  # the query alone is too long, or leaves no room for windows
        try:
            engine.tokenise(query, [passages[index]], Truncate.NONE)
        except PairTooLong as error:
            return PairTooLong(index, error.num_tokens, error.max_tokens)
    (spans,) = engine.token_spans([passages[index]])
    (empty,) = engine.tokenise(query, [""], Truncate.END)
    return PairTooLong(index, empty.num_tokens + len(spans), sum(pair.num_tokens for pair in groups[index]))


def _begin(spans: Sequence[TokenSpan], token: int) -> int:
    return spans[token][0] if token else 0


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
