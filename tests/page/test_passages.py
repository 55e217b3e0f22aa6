"""The passages' field: how its text is split, and files opened into it."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.visit import LONG, Visit

CODE = ["def f(x):\n    if x:\n\n        return 1\n    return 2", "SELECT a\n  FROM b"]


@pytest.mark.parametrize(
    ("separator", "text", "passages"),
    [
        ("blank lines", "one\nmore\n \n  two\n\n\n\nthree  ", ["one\nmore", "  two", "three"]),
        ("lines", "one\n\n  two  \nthree", ["one", "two", "three"]),
        ("---", "\n" + "\n---\n".join(CODE), CODE),
        ("---", "# Title\n---\nbody\n-----\nsecond", ["# Title\n---\nbody", "second"]),
    ],
)
def test_passages_are_split_where_the_visitor_says(
    visit: Visit, separator: str, text: str, passages: list[str]
) -> None:
    visit.page.get_by_role("group", name="Split at").get_by_label(separator, exact=True).check()
    visit.write("q", [text])
    noun = "passage" if len(passages) == 1 else "passages"
    expect(visit.page.locator("#count")).to_have_text(f"{len(passages)} {noun}")
    assert visit.texts.evaluate_all("texts => texts.map((text) => text.textContent)") == passages


def test_code_keeps_its_indentation_and_gets_a_fixed_width(visit: Visit) -> None:
    visit.page.get_by_label("---").check()
    visit.write("return", CODE, "\n---\n")
    asked = visit.rankings_asked()
    visit.rank()
    assert [passage["text"] for passage in asked[0]["passages"]] == CODE
    code = visit.texts.first
    assert code.evaluate("text => getComputedStyle(text).whiteSpaceCollapse") == "preserve"
    assert "mono" in code.evaluate("text => getComputedStyle(text).fontFamily").lower()


def test_right_to_left_text_runs_from_the_right(visit: Visit) -> None:
    visit.write("كيف أحافظ على الخبز؟", ["يُحفظ الخبز في كيس ورقي.", "Bread in a bag."])
    visit.rank()
    directions = {
        text.inner_text(): text.evaluate("text => getComputedStyle(text).direction") for text in visit.texts.all()
    }
    assert directions == {"يُحفظ الخبز في كيس ورقي.": "rtl", "Bread in a bag.": "ltr"}
    assert visit.query.evaluate("field => getComputedStyle(field).direction") == "rtl"


def test_a_long_passage_opens_and_closes(visit: Visit) -> None:
    visit.write("starch", [LONG, "short"])
    row = visit.rows.first
    low = row.bounding_box()["height"]
    row.get_by_role("button", name="More").click()
    assert row.bounding_box()["height"] > 2 * low
    row.get_by_role("button", name="Less").click()
    assert row.bounding_box()["height"] == low
    expect(visit.rows.last.get_by_role("button")).to_have_count(0)


def test_the_clear_button_empties_the_form_and_brings_the_example_back(visit: Visit) -> None:
    example = visit.query.input_value()
    visit.page.get_by_role("button", name="Clear").click()
    expect(visit.query).to_have_value("")
    expect(visit.rows).to_have_count(0)
    visit.page.get_by_role("button", name="Fill in the example").click()
    expect(visit.query).to_have_value(example)


FILES = {
    "faq.jsonl": "\n".join(json.dumps({"query": "Why?", "text": text}) for text in CODE),
    "faq.csv": 'id,text\n1,"one, ""quoted"""\n2,two\n',
    "faq.txt": "one\n\ntwo",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_fills_the_form(visit: Visit, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    visit.page.get_by_label("File of passages").set_input_files(path)

    expect(visit.page.locator("#toast")).to_have_text(f"2 passages from {name}")
    expect(visit.rows).to_have_count(2)
    shown = visit.texts.evaluate_all("texts => texts.map((text) => text.textContent)")
    assert shown == {"faq.jsonl": CODE, "faq.csv": ['one, "quoted"', "two"], "faq.txt": ["one", "two"]}[name]
    if name == "faq.jsonl":
        expect(visit.query).to_have_value("Why?")


def test_a_file_can_be_dropped_anywhere(visit: Visit) -> None:
    drop = """(text) => {
        const files = new DataTransfer();
        files.items.add(new File([text], "dropped.txt"));
        for (const kind of ["dragover", "drop"]) {
            const event = new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: files});
            document.querySelector("h1").dispatchEvent(event);
        }
    }"""
    visit.page.evaluate(drop, "first\n\nsecond\n\nthird")
    expect(visit.rows).to_have_count(3)
    expect(visit.page.locator("#toast")).to_have_text("3 passages from dropped.txt")


def test_a_file_that_cannot_be_read_is_reported_at_the_field(visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "fine"}\n{"text": \n', encoding="utf-8")
    visit.page.get_by_label("File of passages").set_input_files(path)
    expect(visit.error_at("passages")).to_contain_text("2")
    expect(visit.rows).to_have_count(6)  # the form is unchanged
