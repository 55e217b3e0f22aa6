"""Splitting passages into sentences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_service.routing.sentences import split_sentences


def sentences(text: str, limit: int = 16) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text, limit)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t ", []),
        ("One sentence", ["One sentence"]),
        ("It rained. Did it?! Yes... ", ["It rained.", "Did it?!", "Yes..."]),
        ('He said "No." Then left.', ['He said "No."', "Then left."]),
        ("Pi is 3.14, see example.com for more.", ["Pi is 3.14, see example.com for more."]),
        ("Dr. Who came.", ["Dr.", "Who came."]),  # no abbreviations are known
        ("- one\n- two\r\n\n- three", ["- one", "- two", "- three"]),
        ("東京は首都です。人口は？「多い。」はい！", ["東京は首都です。", "人口は？", "「多い。」", "はい！"]),
        ("هل هذا سؤال؟ نعم.", ["هل هذا سؤال؟", "نعم."]),
        ("यह एक वाक्य है। यह दूसरा है।", ["यह एक वाक्य है।", "यह दूसरा है।"]),
    ],
)
def test_sentences_end_at_punctuation_and_line_breaks(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_text_without_punctuation_is_cut_evenly_between_words() -> None:
    words = [f"word{number:03}" for number in range(150)]

    parts = sentences(" ".join(words))

    assert [word for part in parts for word in part.split()] == words
    assert len(parts) == 3
    assert max(map(len, parts)) - min(map(len, parts)) <= 16


def test_text_without_spaces_is_cut_anywhere() -> None:
    assert [len(part) for part in sentences("字" * 1000)] == [333, 333, 334]


def test_neighbours_are_joined_to_parts_of_about_equal_length() -> None:
    text = " ".join(f"Sentence {number:02} is here." for number in range(40))

    parts = sentences(text, limit=10)

    assert len(parts) == 10
    assert " ".join(parts) == text
    assert {part.count(".") for part in parts} == {4}


@given(st.text(alphabet=st.sampled_from('ab .!?。\n"” 字🙂\u2028'), max_size=300), st.integers(2, 8))
def test_sentences_cover_the_text_in_order_within_the_limit(text: str, limit: int) -> None:
    places = split_sentences(text, limit)

    assert len(places) <= limit
    position = 0
    for start, end in places:
        assert position <= start < end
        assert text[position:start].strip() == ""
        assert text[start:end] == text[start:end].strip()
        position = end
    assert text[position:].strip() == ""


@pytest.mark.parametrize("text", ["." * 400_000 + "x", '."' * 200_000 + "x", " " * 400_000, "a" * 400_000])
@pytest.mark.timeout(60)  # quadratic time would take hours
def test_the_time_is_linear_in_the_length(text: str) -> None:
    assert len(split_sentences(text, 16)) <= 16
