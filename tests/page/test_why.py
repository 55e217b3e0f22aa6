"""Why a passage has its score: the page shows the API's explanation."""

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Service
from tests.page.visit import COSINE, CROSS_ENCODER, Visit

SENTENCES = "Bread is baked 🍞 daily. 東京。 It is sold in the morning. The shop is closed on Sundays."


def explanation(visit: Visit, passage: str, **fields: Any) -> dict[str, Any]:
    answer = visit.answer(visit.query.input_value(), [passage], explain={"top_n": 1}, **fields)
    entry: dict[str, Any] = answer["explanations"][0]
    return entry


def part(text: str, span: dict[str, int]) -> str:
    return text[span["start"] : span["end"]]


def test_one_press_asks_for_one_passage_once(visit: Visit) -> None:
    visit.rank()
    asked = visit.rankings_asked()
    row = visit.rows.first
    text = row.locator(".text").inner_text()

    visit.ask_why(0)

    assert len(asked) == 1
    assert [passage["text"] for passage in asked[0]["passages"]] == [text]
    assert asked[0]["explain"] == {"top_n": 1}
    row.get_by_role("button", name="Close").click()
    expect(row.locator(".why-panel")).to_have_count(0)
    visit.ask_why(0)
    assert len(asked) == 1  # the page keeps explanations


def test_each_token_of_the_query_shows_what_it_met(visit: Visit) -> None:
    visit.write("How is 🍞 bread kept?", ["Keep the loaf 🍞 in a bag, says the baker."])
    visit.rank()
    panel = visit.ask_why(0)
    query, passage = "How is 🍞 bread kept?", "Keep the loaf 🍞 in a bag, says the baker."
    matches = explanation(visit, passage)["matches"]

    tokens = panel.get_by_role("group", name="Tokens of the query").get_by_role("button")
    expect(tokens).to_have_text([part(query, match["query"]) for match in matches])
    expect(panel.locator(".text")).to_have_text(passage)
    for token, match in zip(tokens.all(), matches, strict=True):
        token.hover()
        met = "a token without text" if match["passage"] is None else f"“{part(passage, match['passage'])}”"
        words = f"“{part(query, match['query'])}” is most similar to {met}: {match['similarity']:.2f}"
        expect(panel.locator(".legend")).to_have_text(words)
        expect(token).to_have_attribute("aria-label", words)
        linked = [] if match["passage"] is None else [part(passage, match["passage"])]
        expect(panel.locator(".text .linked")).to_have_text(linked)
        expect(panel.locator(".link-line path")).to_have_count(len(linked))

    visit.query.hover()
    expect(panel.locator(".linked")).to_have_count(0)


def test_more_similar_tokens_are_darker(visit: Visit) -> None:
    visit.write("bread", ["bread and a car"])
    visit.rank()
    panel = visit.ask_why(0)
    weight = "token => Number(/shade-(\\d)/.exec(token.className)[1])"
    (match,) = explanation(visit, "bread and a car")["matches"]
    assert panel.locator(".text .token").evaluate(weight) == round(5 * match["similarity"] ** 2)
    assert match["similarity"] > 0.8


def test_tokens_are_reached_by_keyboard(visit: Visit) -> None:
    visit.write("red apples", ["apples are red"])
    visit.rank()
    panel = visit.ask_why(0)
    tokens = panel.get_by_role("group", name="Tokens of the query").get_by_role("button")
    tokens.first.focus()
    expect(panel.locator(".text .linked")).to_have_text(["red"])
    visit.page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(panel.locator(".text .linked")).to_have_text(["apples"])
    visit.page.keyboard.press("ArrowRight")
    expect(tokens.first).to_be_focused()
    visit.page.keyboard.press("Tab")  # one stop for all tokens
    expect(visit.rows.first.get_by_role("button", name="Close")).to_be_focused()


def test_a_cross_encoder_shows_the_contribution_of_each_sentence(models_visit: Visit) -> None:
    visit = models_visit
    visit.choose_model(CROSS_ENCODER)
    visit.write("When is bread sold?", [SENTENCES])
    visit.rank()
    panel = visit.ask_why(0)

    sentences = explanation(visit, SENTENCES, model=CROSS_ENCODER)["sentences"]
    assert len(sentences) == 4
    expect(panel.locator(".text .token")).to_have_text([part(SENTENCES, sentence) for sentence in sentences])
    figures = [f"{sentence['contribution']:+.2f}".replace("-", "−") for sentence in sentences]
    expect(panel.locator(".contribution")).to_have_text(figures)
    expect(panel.locator(".legend")).to_contain_text("approximate")
    signs = panel.locator(".text .token").evaluate_all(
        "tokens => tokens.map((token) => !token.className.includes('minus'))"
    )
    assert signs == [sentence["contribution"] >= 0 for sentence in sentences]


def test_a_single_sentence_has_nothing_to_compare_with(models_visit: Visit) -> None:
    models_visit.choose_model(CROSS_ENCODER)
    models_visit.write("bread", ["Bread is baked daily."])
    models_visit.rank()
    panel = models_visit.ask_why(0)
    expect(panel.locator(".legend")).to_contain_text("The passage has only one sentence")
    expect(panel.locator(".contribution")).to_have_count(0)


def test_each_of_two_models_explains_its_own_ranking(models_visit: Visit) -> None:
    visit = models_visit
    visit.compare()
    visit.rank()
    asked = visit.rankings_asked()
    second = visit.page.locator("ol").nth(1).locator("li").first
    second.get_by_role("button", name="Why?").click()
    expect(second.locator(".why-panel")).to_be_visible()
    assert [body["model"] for body in asked] == [COSINE]


@pytest.mark.parametrize("edit", ["query", "nothing"])
def test_an_explanation_is_that_of_the_ranking_shown(visit: Visit, edit: str) -> None:
    visit.rank()
    asked = visit.rankings_asked()
    query = visit.query.input_value()
    if edit == "query":
        visit.query.fill("something else")
    visit.ask_why(0)
    assert asked[0]["query"]["text"] == query


def test_a_service_without_explanations_says_so_in_the_row(page: Page, service: Service) -> None:
    visit = Visit(page, service.silent_url)
    visit.rank()
    visit.rows.first.get_by_role("button", name="Why?").click()
    expect(visit.rows.first.locator(".why")).to_contain_text("explain is turned off on this service")
    visit.rows.first.get_by_role("button", name="Close").click()
    expect(visit.rows.first.locator(".text")).to_be_visible()


def test_closing_a_row_that_still_waits_keeps_it_closed(visit: Visit) -> None:
    visit.rank()
    held = visit.hold_rankings()
    row = visit.rows.first
    row.get_by_role("button", name="Why?").click()
    expect(row.locator(".asking")).to_be_visible()
    row.get_by_role("button", name="Close").click()
    held[0].continue_()
    expect(visit.page.locator("#announcement")).to_contain_text("Explained")
    expect(row.locator(".text")).to_be_visible()
    expect(row.locator(".why-panel")).to_have_count(0)
