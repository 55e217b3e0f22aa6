"""The page's modules, as the application serves them, called in Chromium with Python values."""

import csv
import io
import json
import math
import random
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser, Error

from tests.page.conftest import CALL, Service

Call = Callable[..., Any]

# ---- Orders


def bm25(query: list[str], texts: list[list[str]]) -> list[int]:
    mean = sum(map(len, texts)) / len(texts)

    def score(words: list[str]) -> float:
        total = 0.0
        for word in query:
            having = sum(word in other for other in texts)
            count = words.count(word)
            idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            total += idf * count / (count + 1.2 * (0.25 + 0.75 * len(words) / mean))
        return round(total, 9)

    return sorted(range(len(texts)), key=lambda index: -score(texts[index]))


def test_bm25_follows_lucenes_formula(call: Call) -> None:
    chance = random.Random(1)
    vocabulary = ["bread", "goes", "stale", "because", "starch", "crystallises", "water", "salt", "oven", "flour"]
    for _ in range(20):
        texts = [chance.choices(vocabulary, k=chance.randrange(1, 30)) for _ in range(30)]
        query = chance.sample(vocabulary, 3)
        assert call("order.bm25Order", " ".join(query), list(map(" ".join, texts))) == bm25(query, texts)


@pytest.mark.parametrize(
    ("query", "texts", "order"),
    [
        ("Stale BREAD?", ["water", "bread, stale.", "Bread"], [1, 2, 0]),
        ("面包变硬", ["海水是咸的", "如何让面包不变硬", "面包师"], [1, 2, 0]),
        ("パンが固い", ["海の水", "固いパン"], [1, 0]),
        ("빵 보관", ["바닷물", "빵을 보관하는 방법"], [1, 0]),
        ("CAFÉ", ["tea", "cafe\u0301"], [1, 0]),  # composed and decomposed letters are the same word
        ("الخبز", ["الماء", "حفظ الخبز"], [1, 0]),
        ("no such word", ["b", "a", ""], [0, 1, 2]),
        ("", ["b", "a"], [0, 1]),
        ("?!", ["", ""], [0, 1]),
        ("anything", [], []),
    ],
)
def test_bm25_splits_words_of_any_language(call: Call, query: str, texts: list[str], order: list[int]) -> None:
    assert call("order.bm25Order", query, texts) == order


@pytest.mark.parametrize(
    ("a", "b", "tau"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], 1),
        ([0, 1, 2, 3], [3, 2, 1, 0], -1),
        ([2, 0, 1], [2, 1, 0], pytest.approx(1 / 3)),
        ([5], [5], 1),
        ([], [], 1),
    ],
)
def test_kendalls_tau(call: Call, a: list[int], b: list[int], tau: float) -> None:
    assert call("order.kendallTau", a, b) == tau


def test_kendalls_tau_is_that_of_scipy(call: Call) -> None:
    stats = pytest.importorskip("scipy.stats")
    chance = random.Random(2)
    for size in (2, 7, 50):
        a, b = (chance.sample(range(size), size) for _ in range(2))
        places = [[order.index(index) for index in range(size)] for order in (a, b)]
        assert call("order.kendallTau", a, b) == pytest.approx(stats.kendalltau(*places).statistic)


@pytest.mark.parametrize(("k", "overlap"), [(1, 0), (2, 0.5), (3, pytest.approx(2 / 3)), (4, 1), (9, 1)])
def test_the_overlap_of_the_best(call: Call, k: int, overlap: float) -> None:
    assert call("order.overlapAt", [0, 1, 2, 3], [1, 3, 0, 2], k) == overlap


# ---- Files

NIM = {"model": "m", "query": {"text": "q"}, "passages": [{"text": "a"}, {"text": "b"}], "truncate": "END"}
COHERE = {"model": "m", "query": "q", "documents": ["a", {"text": "b", "title": "t"}], "top_n": 3}


@pytest.mark.parametrize(
    ("name", "text", "query", "passages"),
    [
        ("a.txt", "one\n  two \n\n", None, ["one", "two"]),
        ("a.txt", "\ufeffone\r\nline two\r\n\r\n\r\n  indented\r\n", None, ["one\nline two", "  indented"]),
        ("A.TXT", "one", None, ["one"]),
        ("a.md", "# Title\ntext\n\n```\nx = 1\n\n    y = 2\n```\n\nend", None,
         ["# Title\ntext", "```\nx = 1\n\n    y = 2\n```", "end"]),
        ("a.jsonl", '"one"\n\n{"Text": "two"}\n{"document": {"body": "three"}}\n', None, ["one", "two", "three"]),
        ("a.ndjson", '\ufeff{"query": "q"}\r\n{"passage": "a\\nb"}\r\n{"content": ""}', "q", ["a\nb"]),
        ("a.jsonl", '{"query": "q", "text": "a"}\n{"query": {"text": "q"}, "text": "b"}', "q", ["a", "b"]),
        ("a.jsonl", json.dumps(NIM), "q", ["a", "b"]),
        ("a.json", json.dumps(NIM, indent=2), "q", ["a", "b"]),
        ("a.json", json.dumps(COHERE), "q", ["a", "b"]),
        ("a.json", '{"query": "q", "texts": ["a"]}', "q", ["a"]),
        ("a.json", '["a", {"body": "b"}]', None, ["a", "b"]),
        ("a.json", '{"query": null, "text": "a"}', None, ["a"]),
        ("a.csv", 'id,Text\n1,"a, ""b""\n c"\n2,d\n', None, ['a, "b"\n c', "d"]),
        ("a.csv", "\ufeffquery;passage\r\nq;a, b\r\nq;c\r\n", "q", ["a, b", "c"]),
        ("a.csv", "Paris\n\nBerlin", None, ["Paris", "Berlin"]),
        ("a.tsv", 'text\tquery\n"a"" b"\tq\n"c" says d\t\n"e\t', "q", ['a" b', '"c" says d', '"e']),
    ],
)  # fmt: skip
def test_a_file_becomes_passages(call: Call, name: str, text: str, query: str | None, passages: list[str]) -> None:
    assert call("files.parseFile", name, text) == {"query": query, "passages": passages}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.pdf", "x", "Open a .jsonl, .json, .csv, .tsv, .txt or .md file"),
        ("constructor", "x", "This type of file is not supported"),
        ("a.constructor", "x", "This type of file is not supported"),
        ("a.txt", "a\0b\0", "Save it as UTF-8 text"),
        ("a.txt", "\n \n", "The file has no passages"),
        ("a.csv", "text\n", "The file has no passages"),
        ("a.txt", "x\n" * 513, "more than 512 passages. Remove the passages from line 513 on"),
        ("a.json", json.dumps(["x"] * 513), "Remove the passages from entry 513 on"),
        ("a.jsonl", '"a"\n{"text": "b"', "Line 2 is not valid JSON. Write one string or object per line"),
        ("a.jsonl", '"a"\n{"title": "b"}', "Line 2 has no text in a field called text, passage"),
        ("a.jsonl", '"a"\n7', "Line 2 has no text"),
        ("a.jsonl", '{"query": "p", "text": "a"}\n{"query": "q", "text": "b"}', "Line 2 has a different query from"),
        ("a.jsonl", '{"query": 7, "text": "a"}', "Line 1, field query, has no text"),
        ("a.json", json.dumps({"query": "q", "passages": ["a", {}]}), "Passage 2 has no text"),
        ("a.json", '[\n"a",\n"b",\n]', "Line 4 is not valid JSON"),
        ("a.json", '[\n"a"\n"b"\n]', "Line 3 is not valid JSON"),
        ("a.json", '{"text": "a"}\n{"text": "b"}\n', "Line 2 is not valid JSON.*rename it to .jsonl"),
        ("a.json", '[\n"a",\n"b}\n]', "Line 3 is not valid JSON"),
        ("a.json", '[\n"a",\n"b"\n\n', "Line 3 is not valid JSON"),
        ("a.json", '[\n{"text": "a"},\n{"text": "b"]\n]', "Line 3 is not valid JSON"),
        ("a.json", "plain text", "Line 1 is not valid JSON.*plain text, to .txt"),
        ("a.json", "", "Line 1 is not valid JSON"),
        ("a.csv", 'text\n"a\nb"\n"c', "Line 4 opens a double quote.*Write each quote"),
        ("a.csv", 'id,text\n1,"a\nb"\n2,"c"d', "Line 4 opens a double quote"),
        ("a.csv", "id,title\n1,a", "Line 1 has no column called text, passage, content.*Name the columns"),
        ("a.csv", "query\nq", "Line 1 has no column called"),
        ("a.csv", 'id,text\n1,"a\nb"\n2,c, d', "Line 4 has 3 fields, but the first row has 2.*contains a comma"),
        ("a.tsv", "id\ttext\n1", "Line 2 has 1 fields.*contains a tab"),
    ],
)  # fmt: skip
def test_an_unusable_file_is_refused_with_the_line(call: Call, name: str, text: str, words: str) -> None:
    with pytest.raises(Error, match=words):
        call("files.parseFile", name, text)


@pytest.mark.parametrize(("extension", "separator"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
def test_tables_written_by_python_are_read(call: Call, extension: str, separator: str) -> None:
    chance = random.Random(3)
    texts = ["x" + "".join(chance.choices('ab ",;\t\n', k=chance.randrange(12))) for _ in range(500)]
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator)
    writer.writerow(["id", "text", "note"])
    writer.writerows([number, text, text[::-1]] for number, text in enumerate(texts))

    assert call("files.parseFile", f"a.{extension}", file.getvalue())["passages"] == texts


def test_512_long_passages_are_read(call: Call) -> None:
    texts = [f"{number} " + "long, " * 2000 for number in range(512)]
    assert call("files.parseFile", "a.json", json.dumps(texts))["passages"] == texts


# ---- Links

TEXTS = ["", "a\n\n b", "東京 🍞 \u2028 \x00 <b>&\"'"]
STATE = {"query": "q?", "passages": TEXTS, "models": ["a/b"], "fitting": "END", "before": "bm25", "threshold": -1.25}
BOMB = b'{"query": "' + b"x" * 50_000_000 + b'"}'


def link(content: bytes, version: str = "1z.") -> str:
    return version + urlsafe_b64encode(content).decode().rstrip("=")


def test_a_link_keeps_the_form(call: Call) -> None:
    text = call("share.encodeState", STATE)
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    assert call("share.decodeState", text) == call("share.decodeState", f"#{text}") == STATE
    content = text.removeprefix("1z.")
    assert json.loads(zlib.decompress(urlsafe_b64decode(content + "=" * (-len(content) % 4)))) == STATE


def test_a_link_is_short(call: Call) -> None:
    assert len(call("share.encodeState", {"passages": ["the same passage"] * 500})) < 200


def test_browsers_without_compression_make_longer_links(browser: Browser, service: Service) -> None:
    page = browser.new_page()
    page.add_init_script("delete globalThis.CompressionStream; delete globalThis.DecompressionStream")
    page.goto(service.url)
    share = f"{service.url}playground/share.js"
    text = page.evaluate(CALL, [share, "encodeState", [STATE]])
    assert text.startswith("1j.")
    assert page.evaluate(CALL, [share, "decodeState", [text]]) == STATE
    assert page.evaluate(CALL, [share, "decodeState", [link(zlib.compress(b"{}"))]]) is None
    page.close()


@pytest.mark.parametrize(
    "text",
    [
        "", "#", "1z.", "1j.", "section-3", "2z.AAAA", "1z.AAAA", "1j.A", "1z.%00", "1j.e30=",
        link(b"not compressed"), link(zlib.compress(b"no JSON")), link(zlib.compress(b"[]")), link(b"null", "1j."),
        link(zlib.compress(b"{}")[:-1]), link(zlib.compress(b"{}") + b"more"), link(b'{"query": "\xff"}', "1j."),
        link(zlib.compress(BOMB, 9)), link(BOMB[:2_100_000] + b'"}', "1j."),
        *(link(json.dumps(state).encode(), "1j.") for state in
          [{"query": 7}, {"passages": "a"}, {"passages": [7]}, {"models": {}}, {"threshold": "1"}]),
    ],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_anything_else_is_no_link(call: Call, text: str) -> None:
    assert call("share.decodeState", text) is None


def test_a_damaged_link_is_recognised(call: Call) -> None:
    text = call("share.encodeState", {"query": "How do I keep bread from going stale?", "passages": ["a", "b"]})
    for at in range(3, len(text) - 1):  # the last character has unused bits
        assert call("share.decodeState", text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]) is None


def test_too_much_text_for_a_link_is_refused(call: Call) -> None:
    with pytest.raises(Error, match=r"at most 2 MB\. Shorten or remove passages"):
        call("share.encodeState", {"passages": ["x" * 2_100_000]})


# ---- Explanations


def match(query: tuple[int, int], passage: tuple[int, int] | None, similarity: float) -> dict[str, Any]:
    def span(bounds: tuple[int, int] | None) -> dict[str, int] | None:
        return bounds and {"start": bounds[0], "end": bounds[1]}

    return {"query": span(query), "passage": span(passage), "similarity": similarity}


def test_tokens_are_shaded_by_similarity(call: Call) -> None:
    matches = [match((0, 1), (2, 4), 0.4), match((2, 4), (2, 4), 0.9), match((5, 6), None, 0.2)]
    answer = call("explanation.shadeTokens", "🍞 ok.", {"matches": [*matches, match((5, 6), (4, 5), -0.1)]}, "🍞 is 東")

    assert answer["segments"] == [
        {"text": "🍞 ", "weight": 0, "title": ""},
        {"text": "ok", "weight": 0.9, "title": "“is”, similarity 0.90"},
        {"text": ".", "weight": 0, "title": "“東”, similarity -0.10"},
    ]
    assert [token["text"] for token in answer["queryTokens"]] == ["🍞", "is", "東", "東"]
    assert answer["queryTokens"][1] == {
        "text": "is", "start": 2, "end": 4, "similarity": 0.9, "passage": {"start": 2, "end": 4},
    }  # fmt: skip
    assert answer["queryTokens"][2]["passage"] is None


def test_overlapping_matches_take_the_largest_similarity(call: Call) -> None:
    chance = random.Random(5)
    for _ in range(30):
        passage = "".join(chance.choices("ab 🍞東", k=chance.randrange(1, 25)))
        spans = [sorted(chance.sample(range(len(passage) + 1), 2)) for _ in range(4)]
        matches = [match((0, 1), (start, end), chance.random()) for start, end in spans]

        segments = call("explanation.shadeTokens", passage, {"matches": matches})["segments"]

        expected = [
            max(
                (one["similarity"] for one in matches if one["passage"]["start"] <= at < one["passage"]["end"]),
                default=0,
            )
            for at in range(len(passage))
        ]
        assert "".join(segment["text"] for segment in segments) == passage
        assert [segment["weight"] for segment in segments for _ in segment["text"]] == expected
        starts = {sum(len(other["text"]) for other in segments[:at]) for at in range(len(segments))}
        assert {start for start, _ in spans} <= starts


def test_sentences_are_shaded_by_contribution(call: Call) -> None:
    spans = [{"start": 0, "end": 2, "contribution": 1.5}, {"start": 3, "end": 5, "contribution": -3.0}]
    assert call("explanation.shadeSentences", "🍞. b.\n", {"sentences": spans}) == [
        {"text": "🍞.", "weight": 0.5, "title": "raises the logit by 1.50", "contribution": 1.5},
        {"text": " ", "weight": 0, "title": ""},
        {"text": "b.", "weight": -1, "title": "lowers the logit by 3.00", "contribution": -3},
        {"text": "\n", "weight": 0, "title": ""},
    ]


@pytest.mark.parametrize("contribution", [None, 0.0])
def test_sentences_without_contribution_are_not_shaded(call: Call, contribution: float | None) -> None:
    sentences = [{"start": 0, "end": 1, "contribution": contribution}]
    (segment,) = call("explanation.shadeSentences", "a", {"sentences": sentences})
    assert (segment["text"], segment["weight"]) == ("a", 0)
    assert call("explanation.shadeSentences", "", {"sentences": []}) == []
