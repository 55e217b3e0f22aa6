"""Long passages are scored in windows, on every engine."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rerank_service.engine import Engine, load_engine
from rerank_service.engine.text.windows import encode_passages, matches_of, shorten, split
from rerank_service.errors import PairTooLong, QueryTooLong
from rerank_service.messages import Fitting, PassageWindows, Truncate
from rerank_service.routing.ranker import estimate_tokens
from tests.models import embedded_model, local_model

QUERY = "which planet has rings"
LONG = " ".join(f"Sentence {number} speaks of naïve cafés, 東京, and of nothing else." for number in range(40))
PASSAGES = ["Saturn has rings.", LONG, "", LONG + " Saturn has rings."]
ENGINES = ("bert", "modernbert", "llama_bidirec", "mistral", "qwen3", "minicpm", "embedded")
PROMPT_TOKENS = {"qwen3": 144, "minicpm": 64}
"""Tokens that an engine's long prompt takes from the window."""


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Engine:
    if request.param == "embedded":
        return load_engine(embedded_model().model_copy(update={"window_tokens": 64}))
    return load_engine(local_model(checkpoints[request.param], window_tokens=96 + PROMPT_TOKENS.get(request.param, 0)))


def windows(max_per_passage: int = 100, tokens: int | None = None, overlap_tokens: int = 8) -> Fitting:
    return Fitting(windows=PassageWindows(max_per_passage, tokens, overlap_tokens))


def texts_of(text: str, places: tuple[list[tuple[int, int]], bool]) -> tuple[list[str], bool]:
    return [text[start:end] for start, end in places[0]], places[1]


def logits_of(engine: Engine, passages: list[str], fitting: Fitting) -> tuple[float, ...]:
    encoded = encode_passages(engine, QUERY, passages, fitting)
    return encoded.best(engine.score(encoded.pairs))


def test_a_passage_that_fits_has_the_same_pair_with_windows(engine: Engine) -> None:
    cut = encode_passages(engine, QUERY, PASSAGES, Fitting())
    in_windows = encode_passages(engine, QUERY, PASSAGES, windows())

    assert cut.is_truncated == (False, True, False, True)
    assert in_windows.is_truncated == (False, False, False, False)
    assert in_windows.num_windows[0] == in_windows.num_windows[2] == 1
    assert cut.pairs[0].token_ids.tolist() == in_windows.pairs[0].token_ids.tolist()
    assert in_windows.num_windows[1] > 5
    assert in_windows.num_tokens[1] > 5 * cut.num_tokens[1]
    assert in_windows.num_tokens[0] == cut.num_tokens[0]


def test_a_passage_has_the_logit_of_its_best_window(engine: Engine) -> None:
    """The passage has the same logit as if the caller had split it."""
    encoded = encode_passages(engine, QUERY, [LONG], windows())
    logits = engine.score(encoded.pairs)

    assert encoded.best(logits) == (max(logits),)
    assert len(set(logits)) > 1


def test_a_passage_can_keep_its_end_instead_of_its_start(engine: Engine) -> None:
    passages = ["Saturn has rings.", "", "Another start. " + LONG, LONG]
    plain = encode_passages(engine, QUERY, passages, Fitting())
    ends = encode_passages(engine, QUERY, passages, Fitting(keeps_end=True))
    whole, end = plain.best(engine.score(plain.pairs)), ends.best(engine.score(ends.pairs))

    assert plain.is_truncated == ends.is_truncated == (False, False, True, True)
    assert [pair.token_ids.tolist() for pair in ends.pairs[:2]] == [pair.token_ids.tolist() for pair in plain.pairs[:2]]
    assert end[2] == end[3]
    assert whole[2] != whole[3]
    assert not any(ends.is_unscored)
    assert max(len(pair.token_ids) for pair in ends.pairs) <= engine.window_tokens


def test_a_pair_can_have_a_limit_below_the_window(engine: Engine) -> None:
    (short,) = encode_passages(engine, QUERY, [PASSAGES[0]], Fitting()).pairs
    fewest = len(engine.tokenise(QUERY, [""], Truncate.END)[0].token_ids)
    for limit in (engine.window_tokens - 20, len(short.token_ids)):
        encoded = encode_passages(engine, QUERY, [PASSAGES[0], LONG], Fitting(max_pair_tokens=limit))
        assert encoded.is_truncated == (False, True)
        assert encoded.pairs[0].token_ids.tolist() == short.token_ids.tolist()
        assert limit - 2 <= len(encoded.pairs[1].token_ids) <= limit + 1  # the cut text may be tokenised differently
    one = encode_passages(engine, QUERY, [LONG], Fitting(max_pair_tokens=1))
    assert fewest < len(one.pairs[0].token_ids) <= fewest + 2
    assert not any(one.is_unscored)
    for limit in (engine.window_tokens, engine.window_tokens + 1000):
        encoded = encode_passages(engine, QUERY, [LONG], Fitting(max_pair_tokens=limit))
        assert abs(len(encoded.pairs[0].token_ids) - engine.window_tokens) <= 1


def test_windows_read_the_end_of_a_passage(engine: Engine) -> None:
    """Without windows, two long passages with the same beginning have the same logit."""
    first, second = logits_of(engine, [LONG, LONG + " Saturn has rings, and rings has Saturn."], Fitting())
    assert first == second

    first = encode_passages(engine, QUERY, [LONG], windows())
    second = encode_passages(engine, QUERY, [LONG + " Saturn has rings, and rings has Saturn."], windows())
    assert first.pairs[-1].token_ids.tolist() != second.pairs[-1].token_ids.tolist()


def test_the_embedded_model_finds_the_answer_at_the_end() -> None:
    engine = load_engine(embedded_model().model_copy(update={"window_tokens": 64}))
    answer, other = PASSAGES[3], "The school went to see a planet film last week."

    assert logits_of(engine, [answer], Fitting()) < logits_of(engine, [other], Fitting())
    assert logits_of(engine, [answer], windows()) > logits_of(engine, [other], windows())


def test_more_windows_than_allowed_are_cut_or_refused(engine: Engine) -> None:
    two = encode_passages(engine, QUERY, PASSAGES, windows(2))
    assert list(two.num_windows) == [1, 2, 1, 2]
    assert two.is_truncated == (False, True, False, True)

    with pytest.raises(PairTooLong) as caught:
        encode_passages(engine, QUERY, PASSAGES, Fitting(Truncate.NONE, windows=windows(2).windows))
    assert caught.value.index == 1
    assert caught.value.num_tokens > caught.value.max_tokens == two.num_tokens[1]
    assert caught.value.num_windows == 2
    encode_passages(engine, QUERY, PASSAGES, Fitting(Truncate.NONE, windows=PassageWindows(100)))


def test_a_single_window_is_plain_truncation(engine: Engine) -> None:
    assert logits_of(engine, PASSAGES, windows(1)) == logits_of(engine, PASSAGES, Fitting())


def test_windows_can_be_shorter_than_the_models_window(engine: Engine) -> None:
    encoded = encode_passages(engine, QUERY, [PASSAGES[0], LONG], windows(tokens=24))
    (query_only,) = encode_passages(engine, QUERY, [""], Fitting()).pairs

    assert encoded.num_windows[0] == 1
    assert all(len(pair.token_ids) <= len(query_only.token_ids) + 24 + 4 for pair in encoded.pairs)
    assert encoded.num_windows[1] > encode_passages(engine, QUERY, [LONG], windows()).num_windows[0]


def test_decoders_make_no_windows_if_the_query_fills_the_window(engine: Engine) -> None:
    encoded = encode_passages(engine, LONG, ["short", "", LONG], windows())

    assert encoded.is_truncated == (True, True, True)
    assert encoded.num_windows[0] == encoded.num_windows[1] == 1
    assert (encoded.num_windows[2] == 1) == (engine.passage_room(LONG) == 0)


def test_passages_without_remaining_tokens_are_reported(engine: Engine) -> None:
    """Some decoders cut the end of a pair, as published; other engines keep a part of each passage."""
    is_cut_on_the_right = engine.passage_room(LONG) == 0
    texts = ["Saturn has rings.", "", LONG]

    for fitting in (Fitting(), windows()):
        encoded = encode_passages(engine, LONG, texts, fitting)
        assert encoded.is_truncated == (True, True, True)
        assert encoded.is_unscored == (is_cut_on_the_right, False, is_cut_on_the_right)
        assert encode_passages(engine, QUERY, texts, fitting).is_unscored == (False, False, False)
    logits = engine.score(encode_passages(engine, LONG, texts, Fitting()).pairs)
    assert (len(set(logits)) == 1) == is_cut_on_the_right
    for kept_whole in (Fitting(Truncate.NONE), Fitting(Truncate.NONE, windows=PassageWindows(2))):
        refusals = []
        for text in texts:
            with pytest.raises(QueryTooLong) as caught:
                encode_passages(engine, LONG, [text], kept_whole)
            refusals.append(caught.value.args)
        assert len(set(refusals)) == 1
        _, num_tokens, max_tokens, _ = refusals[0]
        assert num_tokens > max_tokens == engine.window_tokens


def test_a_passage_counts_as_scored_with_its_first_token(checkpoints: dict[str, Path]) -> None:
    """Lengthens the query by one token at a time, until no token of the passage remains."""
    for name, window in (("llama_bidirec", 48), ("qwen3", 192)):
        engine = load_engine(local_model(checkpoints[name], window_tokens=window))
        whole = load_engine(local_model(checkpoints[name]))
        seen = set()
        for length in range(1, window):
            query = "a" + " b" * length
            ((one,), (other,), (longer,)) = (
                engine.tokenise(query, [text], Truncate.END) for text in ("Saturn has rings.", "xyzzy", "Saturn has")
            )
            is_same = one.token_ids.tolist() == other.token_ids.tolist()
            assert one.is_unscored == other.is_unscored == longer.is_unscored == is_same
            seen.add((whole.tokenise(query, ["Saturn has rings."], Truncate.END)[0].num_tokens > window, is_same))
        assert seen == {(False, False), (True, False), (True, True)}


def test_the_passage_limit_applies_before_windows(engine: Engine) -> None:
    limited = Fitting(max_passage_tokens=120, windows=PassageWindows(100))
    encoded = encode_passages(engine, QUERY, [LONG], limited)

    assert encoded.is_truncated == (True,)
    assert 1 < encoded.num_windows[0] < 8
    assert logits_of(engine, [LONG], limited) == logits_of(engine, shorten(engine, [LONG], 120), limited)


def test_a_text_is_shortened_at_the_end_of_a_token(engine: Engine) -> None:
    long, short = "Naïve café, 東京は 🎉 " * 20, "a b"
    (spans,) = engine.token_spans([long])

    shortened, untouched = shorten(engine, [long, short], 12)

    assert untouched == short
    assert long.startswith(shortened)
    assert len(shortened) == spans[11][1]
    assert shorten(engine, [long], len(spans)) == [long]


@settings(max_examples=400)
@example(
    word_lengths=[3, 1], tokens=2, overlap=0, limit=2
)  # in an earlier version, a token between the last two windows was lost
@given(
    word_lengths=st.lists(st.integers(1, 12), max_size=60),
    tokens=st.integers(2, 30),
    overlap=st.integers(0, 40),
    limit=st.integers(1, 30),
)
def test_windows_cover_the_text_in_order(word_lengths: list[int], tokens: int, overlap: int, limit: int) -> None:
    """Every token is a different number of four digits; `word_lengths` gives the tokens per word."""
    numbers = iter(range(10_000))
    text = " ".join("".join(f"{next(numbers):04}" for _ in range(length)) for length in word_lengths)
    spans = [match.span() for match in re.finditer(r"\d{4}", text)]

    texts, is_complete = texts_of(text, split(text, spans, tokens, PassageWindows(limit, overlap_tokens=overlap)))

    assert 1 <= len(texts) <= limit
    windows = [[int(digits) for digits in re.findall(r"\d{4}", window)] for window in texts]
    for before, after in pairwise(windows):
        assert before[0] < after[0] <= before[-1] + 1  # no token between two windows is lost
    for window in windows:
        assert window == list(range(window[0], window[0] + len(window))) if window else not text
        assert len(window) <= tokens
    seen = windows[-1][-1] + 1 if text else 0
    assert (seen == sum(word_lengths)) == is_complete
    assert is_complete or len(texts) == limit
    assert not text or windows[0][0] == 0


def test_matches_are_in_the_best_window_and_count_from_the_start_of_the_passage() -> None:
    engine = load_engine(embedded_model().model_copy(update={"window_tokens": 64}))
    passage = LONG[:1500] + " Saturn has rings. " + LONG[1500:]
    aligner = engine.aligner
    assert aligner is not None
    encoded = encode_passages(engine, QUERY, ["Rings!", passage, ""], windows())
    encoded = replace(encoded, pairs=aligner.recording(encoded.pairs))

    found = matches_of(aligner, QUERY, ["Rings!", passage, ""], encoded, engine.score(encoded.pairs))

    assert encoded.num_windows[1] > 10
    words = [("rings", "Rings"), ("rings", "rings"), ("rings", "")]
    for text, matches, expected in zip(["Rings!", passage, ""], found, words, strict=True):
        last = matches[-1]
        assert (QUERY[slice(*last.query)], text[slice(*(last.passage or (0, 0)))]) == expected
    assert found[1][-1].passage == (1512, 1517)


def test_windows_start_at_words_and_the_last_has_full_length() -> None:
    text = "one two three four five six seven"
    spans = [match.span() for match in re.finditer(r"\w+", text)]

    assert texts_of(text, split(text, spans, 4, PassageWindows(9, overlap_tokens=1))) == (
        ["one two three four", "four five six seven"],
        True,
    )
    assert texts_of(text, split(text, spans, 3, PassageWindows(9, overlap_tokens=0))) == (
        ["one two three", "four five six", "five six seven"],
        True,
    )
    assert texts_of(text, split(text, spans, 3, PassageWindows(2, overlap_tokens=0))) == (
        ["one two three", "four five six"],
        False,
    )
    assert split(text, spans, 9, PassageWindows(9)) == ([(0, len(text))], True)


def test_the_estimate_follows_the_windows(engine: Engine) -> None:
    """The estimate is within a factor of 3 of the scored tokens, prompt excluded. It decides shards and admission."""
    (prompt,) = engine.tokenise("", [""], Truncate.END)
    for fitting in (windows(), windows(3), windows(tokens=24)):
        window_tokens = fitting.windows and (fitting.windows.tokens or engine.window_tokens - prompt.num_tokens)
        assert fitting.windows is not None
        known = PassageWindows(fitting.windows.max_per_passage, window_tokens, fitting.windows.overlap_tokens)
        encoded = encode_passages(engine, QUERY, [LONG], fitting)
        actual = sum(encoded.num_tokens) - len(encoded.pairs) * prompt.num_tokens
        assert actual / 3 < estimate_tokens(QUERY, LONG, known) < actual * 3
    assert estimate_tokens(QUERY, "short", PassageWindows(16)) == estimate_tokens(QUERY, "short")
