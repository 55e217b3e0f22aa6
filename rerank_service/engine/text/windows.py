"""Turns passages into the pairs to score: one pair per passage, or several pairs for the windows of a long passage.

Works with any engine. A passage that fits in one window has the same pair with and without windows, and therefore the
same logit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Generic

from rerank_service.engine.protocol import Aligner, Engine, PairT, TokenSpan
from rerank_service.errors import PairTooLong, QueryTooLong
from rerank_service.messages import MIN_WINDOW_TOKENS, Fitting, PassageWindows, Span, TokenMatch, Truncate

__all__ = ["EncodedPassages", "encode_passages", "matches_of", "shorten", "split"]

_MARGIN_TOKENS = 4
"""Tokens kept free in a window, because the window's text may have one or two more tokens than the same text in the
passage."""

_MAX_WORD_TOKENS = 8
"""Longest run of tokens searched for a word boundary; a longer run without one, as in Chinese, is cut anywhere."""

_WHOLE = (None,)
"""The window of a passage with a single pair."""

_NUM_TOKENS, _IS_UNSCORED = attrgetter("num_tokens"), attrgetter("is_unscored")


@dataclass(frozen=True, slots=True)
class EncodedPassages(Generic[PairT]):
    """The pairs of a request's passages, grouped by passage. Fields after `windows` have one value per passage."""

    pairs: Sequence[PairT]
    windows: Sequence[TokenSpan | None]
    """For each pair, the part of the passage that is its window. Null: the passage has one pair."""
    num_windows: tuple[int, ...]
    """Number of pairs of the passage, at least one."""
    num_tokens: tuple[int, ...]
    """Number of tokens in all pairs of the passage."""
    is_truncated: tuple[bool, ...]
    """Whether part of the passage or of the query is missing from the passage's pairs."""
    is_unscored: tuple[bool, ...]
    """Whether the passage has tokens, but none of them is in a pair."""

    @classmethod
    def joined(cls, parts: Sequence["EncodedPassages[PairT]"]) -> "EncodedPassages[PairT]":
        """Joins the passages of several queries, query by query."""
        return cls(
            list(chain.from_iterable(part.pairs for part in parts)),
            list(chain.from_iterable(part.windows for part in parts)),
            tuple(chain.from_iterable(part.num_windows for part in parts)),
            tuple(chain.from_iterable(part.num_tokens for part in parts)),
            tuple(chain.from_iterable(part.is_truncated for part in parts)),
            tuple(chain.from_iterable(part.is_unscored for part in parts)),
        )

    def best(self, logits: Sequence[float]) -> tuple[float, ...]:
        """The highest logit of each passage; `logits` has one value per pair."""
        best: list[float] = []
        start = 0
        for num_windows in self.num_windows:
            best.append(max(logits[start : start + num_windows]))
            start += num_windows
        return tuple(best)

    def best_pairs(self, logits: Sequence[float]) -> list[int]:
        """For each passage, the index in `pairs` of its pair with the highest logit."""
        best: list[int] = []
        start = 0
        for num_windows in self.num_windows:
            best.append(max(range(start, start + num_windows), key=logits.__getitem__))
            start += num_windows
        return best


def encode_passages(
    engine: Engine[PairT], query: str, passages: Sequence[str], fitting: Fitting
) -> EncodedPassages[PairT]:
    """The pairs that an engine scores for `passages`. Raises `PairTooLong` or `QueryTooLong` under
    `Truncate.NONE`."""
    windows = fitting.windows
    if windows is not None and windows.max_per_passage == 1:
        windows = None  # a single window is the start of the passage: plain truncation
    limit = fitting.max_passage_tokens
    shortened = passages if limit is None else shorten(engine, passages, limit)
    if fitting.truncate is Truncate.END and (fitting.keeps_end or fitting.max_pair_tokens is not None):
        shortened = _shorten_to_pair(engine, query, shortened, fitting)
    # With windows, a passage is too long only if all its windows together cannot hold it.
    try:
        pairs = engine.tokenise(query, shortened, fitting.truncate if windows is None else Truncate.END)
    except PairTooLong as error:
        raise _with_cause(engine, query, error) from None
    split_up = {} if windows is None else _window_pairs(engine, query, shortened, pairs, windows)

    all_pairs: list[PairT] = []
    all_windows: list[TokenSpan | None] = []
    num_windows, num_tokens, is_truncated, is_unscored = [], [], [], []
    for index, pair in enumerate(pairs):
        group, places, is_cut = split_up.get(index, ([pair], _WHOLE, pair.is_truncated))
        if is_cut and fitting.truncate is Truncate.NONE:
            raise _too_long(engine, query, shortened[index], index, group)
        all_pairs += group
        all_windows += places
        num_windows.append(len(group))
        num_tokens.append(sum(map(_NUM_TOKENS, group)))
        is_truncated.append(is_cut or shortened[index] != passages[index])
        is_unscored.append(all(map(_IS_UNSCORED, group)))
    return EncodedPassages(
        all_pairs, all_windows, tuple(num_windows), tuple(num_tokens), tuple(is_truncated), tuple(is_unscored)
    )


def matches_of(
    aligner: Aligner[PairT],
    query: str,
    passages: Sequence[str],
    encoded: EncodedPassages[PairT],
    logits: Sequence[float],
) -> tuple[tuple[TokenMatch, ...], ...]:
    """The token matches of each passage, in its best window; places count from the start of the whole passage.

    The pairs of `encoded` come from `Aligner.recording`; `logits` has one value per pair.
    """
    best = encoded.best_pairs(logits)
    windows = [encoded.windows[pair] or (0, len(passage)) for pair, passage in zip(best, passages, strict=True)]
    texts = [passage[start:end] for passage, (start, end) in zip(passages, windows, strict=True)]
    found = aligner.matches(query, texts, [encoded.pairs[pair] for pair in best])
    return tuple(
        tuple(match._replace(passage=_moved(match.passage, start)) for match in matches)
        for matches, (start, _) in zip(found, windows, strict=True)
    )


def shorten(engine: Engine[PairT], passages: Sequence[str], max_tokens: int) -> list[str]:
    """Cuts each passage after its first `max_tokens` tokens; shorter passages stay unchanged."""
    return _cut(engine, passages, max_tokens, max_tokens)


def _shorten_to_pair(engine: Engine[PairT], query: str, passages: Sequence[str], fitting: Fitting) -> list[str]:
    """Cuts each passage that does not fit next to the query, at the end that `fitting` names. At least one token
    stays."""
    most = min(fitting.max_pair_tokens or engine.window_tokens, engine.window_tokens)
    room = engine.passage_room(query) - (engine.window_tokens - most)
    return _cut(engine, passages, room, room - _MARGIN_TOKENS if fitting.keeps_end else room, fitting.keeps_end)


def _cut(
    engine: Engine[PairT], passages: Sequence[str], max_tokens: int, kept_tokens: int, keeps_end: bool = False
) -> list[str]:
    """Cuts each passage of more than `max_tokens` tokens to `kept_tokens` tokens, but at least one."""
    kept_tokens = max(kept_tokens, 1)
    shortened = list(passages)
    # A token rarely has less than one byte, so only texts with more bytes than `max_tokens` are tokenised.
    candidates = [index for index, text in enumerate(passages) if len(text.encode("utf-8", "replace")) > max_tokens]
    spans = engine.token_spans([passages[index] for index in candidates])
    for index, tokens in zip(candidates, spans, strict=True):
        if len(tokens) > max(max_tokens, 1):
            text = passages[index]
            shortened[index] = text[tokens[-kept_tokens][0] :] if keeps_end else text[: tokens[kept_tokens - 1][1]]
    return shortened


def split(text: str, spans: Sequence[TokenSpan], tokens: int, windows: PassageWindows) -> tuple[list[TokenSpan], bool]:
    """Places of windows of at most `tokens` tokens in `text`; also returns whether the windows cover all of `text`.
    Windows start and end between words where a word boundary is near. The last window is as long as the other windows:
    it starts earlier instead of being shorter.
    """
    overlap = min(windows.overlap_tokens, tokens // 2)
    places: list[TokenSpan] = []
    start = 0
    while start + tokens < len(spans):
        end = _seam_before(text, spans, start + tokens, start)
        places.append(_without_leading_space(text, _begin(spans, start), spans[end - 1][1]))
        if len(places) == windows.max_per_passage:
            return places, False
        start = max(_seam_before(text, spans, end - overlap, start), start + 1)
    if places:  # never after `start`: the tokens before a later word boundary would be in no window
        start = min(start, _seam_after(text, spans, len(spans) - tokens))
    return [*places, _without_leading_space(text, _begin(spans, start), len(text))], True


def _window_pairs(
    engine: Engine[PairT], query: str, passages: Sequence[str], pairs: Sequence[PairT], windows: PassageWindows
) -> dict[int, tuple[list[PairT], list[TokenSpan], bool]]:
    """Returns an entry for the index of each passage that needs several windows: the windows' pairs and places, and
    whether the windows omit part of the passage."""
    room = engine.passage_room(query)
    wanted = min(windows.tokens or room, room - _MARGIN_TOKENS)
    if wanted < MIN_WINDOW_TOKENS:  # the query leaves too little room for windows: the passage is truncated instead
        return {}
    most = windows.tokens or engine.window_tokens
    long = [index for index, pair in enumerate(pairs) if pair.is_passage_cut or len(pair.token_ids) > most]
    result = {}
    for index, spans in zip(long, engine.token_spans([passages[index] for index in long]), strict=True):
        if len(spans) > (wanted if pairs[index].is_passage_cut else most):
            places, is_complete = split(passages[index], spans, wanted, windows)
            group = engine.tokenise(query, [passages[index][start:end] for start, end in places], Truncate.END)
            result[index] = group, places, not is_complete or any(pair.is_truncated for pair in group)
    return result


def _seam_before(text: str, spans: Sequence[TokenSpan], token: int, start: int) -> int:
    """The last token after `start`, up to `token`, that starts a word; `token` itself if no word starts nearby."""
    nearest = range(token, max(start, token - _MAX_WORD_TOKENS), -1)
    return next((index for index in nearest if _opens_word(text, spans, index)), token)


def _seam_after(text: str, spans: Sequence[TokenSpan], token: int) -> int:
    nearest = range(token, min(len(spans), token + _MAX_WORD_TOKENS))
    return next((index for index in nearest if _opens_word(text, spans, index)), token)


def _opens_word(text: str, spans: Sequence[TokenSpan], token: int) -> bool:
    begin, end_before = spans[token][0], spans[token - 1][1]
    return begin >= end_before and not (text[begin - 1].isalnum() and text[begin].isalnum())


def _too_long(engine: Engine[PairT], query: str, passage: str, index: int, windows: Sequence[PairT]) -> PairTooLong:
    """The error for a passage that does not fit in its windows, with token counts of the whole pair and its windows."""
    if any(pair.is_truncated for pair in windows):  # the query alone is too long, or leaves no room for windows
        try:
            engine.tokenise(query, [passage], Truncate.NONE)
        except PairTooLong as error:
            return _with_cause(engine, query, error.at(index))
    (spans,) = engine.token_spans([passage])
    (empty,) = engine.tokenise(query, [""], Truncate.END)
    max_tokens = sum(pair.num_tokens for pair in windows)
    return PairTooLong(index, empty.num_tokens + len(spans), max_tokens, len(windows))


def _with_cause(engine: Engine[PairT], query: str, error: PairTooLong) -> PairTooLong:
    """Returns `QueryTooLong` if the query exceeds the window even with an empty passage, and otherwise `error`. Which
    passage fails first depends on how the request is cut into shards; the query's error does not."""
    try:
        engine.tokenise(query, [""], Truncate.NONE)
    except PairTooLong as alone:
        return QueryTooLong(error.index, alone.num_tokens, alone.max_tokens)
    return error


def _moved(place: Span | None, start: int) -> Span | None:
    return None if place is None else (place[0] + start, place[1] + start)


def _without_leading_space(text: str, start: int, end: int) -> TokenSpan:
    return end - len(text[start:end].lstrip()), end


def _begin(spans: Sequence[TokenSpan], token: int) -> int:
    """The character where a window starts. Characters before the text's first token belong to the first window."""
    return spans[token][0] if token else 0
